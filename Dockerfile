# docker build -t weir .
# docker run -p 127.0.0.1:1883:1883 -p 127.0.0.1:8080:8080 -v weir:/var/lib/weir weir
# Without the address in front Docker publishes a port to everybody, past the firewall of the host; there are no users yet.
#
# Not built where Weir's tests run: there is no Docker there. What it does is what the README's two commands do.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --profile dist --locked -p weir

FROM debian:bookworm-slim
RUN useradd --system --uid 1883 --home-dir /var/lib/weir --create-home weir
COPY --from=build /src/target/dist/weir /usr/bin/weir
COPY weir.toml /usr/share/doc/weir/weir.toml
USER weir
VOLUME /var/lib/weir
EXPOSE 1883 8080
# The admin port stays inside: whatever reaches it can end sessions and change the log level. Prometheus in another container needs it on
# 0.0.0.0, in a network of their own: see compose.yaml.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["/usr/bin/weir", "top", "--once"]
ENTRYPOINT ["/usr/bin/weir"]
CMD ["run", "--mqtt", "0.0.0.0:1883", "--http", "0.0.0.0:8080", "--data", "/var/lib/weir", "--allow-anonymous"]
