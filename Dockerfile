# docker build -t weir .
# docker run -p 1883:1883 -p 8080:8080 -v weir:/var/lib/weir weir
#
# Not built where Weir's tests run: there is no Docker there. What it does is what the README's two commands do.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p weir

FROM debian:bookworm-slim
RUN useradd --system --uid 1883 --home-dir /var/lib/weir --create-home weir
COPY --from=build /src/target/release/weir /usr/bin/weir
COPY weir.toml /usr/share/doc/weir/weir.toml
USER weir
VOLUME /var/lib/weir
EXPOSE 1883 8080 9464
# A container's ports are reached from elsewhere by their nature, and there are no users yet: publish them on addresses of your own network only.
ENTRYPOINT ["/usr/bin/weir"]
CMD ["run", "--mqtt", "0.0.0.0:1883", "--http", "0.0.0.0:8080", "--admin", "0.0.0.0:9464", "--data", "/var/lib/weir", "--allow-anonymous"]
