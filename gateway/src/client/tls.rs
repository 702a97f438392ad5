//! TLS of `weir pub` and `weir sub`, by mosquitto's flags.

use super::Failure;
use clap::Args;
use rustls::{
    CipherSuite, ClientConfig, RootCertStore, SupportedProtocolVersion,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    version::{TLS12, TLS13},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// How the broker is trusted, and what it is shown.
#[derive(Args, Clone, Debug)]
pub struct Tls {
    /// TLS: the certificates, in PEM, of those who may vouch for the broker.
    #[arg(long, value_name = "FILE")]
    cafile: Option<PathBuf>,
    /// TLS: every file of this directory may hold such certificates.
    #[arg(long, value_name = "DIRECTORY")]
    capath: Option<PathBuf>,
    /// TLS: those that the operating system trusts may vouch for the broker.
    #[arg(long)]
    tls_use_os_certs: bool,
    /// The client's own certificate, in PEM, for a broker that asks for one.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// TLS: do not compare the name in the certificate with the host. Anybody whose certificate has
    /// the same issuer can then stand in for the broker.
    #[arg(long)]
    insecure: bool,
    /// TLS: the cipher suites that may be used, by their OpenSSL names with colons between.
    #[arg(long, value_name = "NAMES")]
    ciphers: Option<String>,
    /// TLS: the one version that may be used [default: 1.2 or 1.3].
    #[arg(long, value_name = "VERSION", value_parser = ["tlsv1.2", "tlsv1.3"])]
    tls_version: Option<String>,
    /// TLS: the protocol to ask for, as in `mqtt`; a broker behind port 443 may need it.
    #[arg(long, value_name = "PROTOCOL")]
    tls_alpn: Option<String>,
}

/// OpenSSL's names of what the provider has; those of TLS 1.3 are the same but for their prefix.
const CIPHERS: [(&str, CipherSuite); 9] = [
    ("TLS_AES_256_GCM_SHA384", CipherSuite::TLS13_AES_256_GCM_SHA384),
    ("TLS_AES_128_GCM_SHA256", CipherSuite::TLS13_AES_128_GCM_SHA256),
    ("TLS_CHACHA20_POLY1305_SHA256", CipherSuite::TLS13_CHACHA20_POLY1305_SHA256),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-ECDSA-AES128-GCM-SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-AES256-GCM-SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-AES128-GCM-SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-CHACHA20-POLY1305", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

static ONLY_12: &[&SupportedProtocolVersion] = &[&TLS12];
static ONLY_13: &[&SupportedProtocolVersion] = &[&TLS13];

fn named(path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::new(format!("{}: {why}", path.display()))
}

impl Tls {
    /// Whether the connection is to be one of TLS.
    pub fn is_asked_for(&self) -> bool {
        self.cafile.is_some() || self.capath.is_some() || self.tls_use_os_certs
    }

    /// Reads all files. `url`: a URL asked for TLS, which trusts what the system trusts.
    ///
    /// Returns `None` for a connection without TLS.
    ///
    /// # Errors
    /// A file that cannot be read or holds nothing of use, and flags that need TLS without it.
    pub fn config(&self, url: bool) -> Result<Option<ClientConfig>, Failure> {
        if !self.is_asked_for() && !url {
            return match self.of_no_use() {
                Some(flag) => Err(Failure::new(format!("{flag} is for TLS: add --cafile, --capath or --tls-use-os-certs"))),
                None => Ok(None),
            };
        }
        let provider = Arc::new(self.provider()?);
        let roots = Arc::new(self.roots()?);
        let inner = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build().map_err(Failure::new)?;
        let verifier = Arc::new(Verifier { inner, any_name: self.insecure });
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions())
            .map_err(|e| Failure::new(format!("--ciphers, --tls-version: {e}")))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let chain = certificates(cert)?;
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| named(key, format_args!("no key in PEM: {e}")))?;
                config.with_client_auth_cert(chain, secret).map_err(|e| named(cert, e))?
            }
            _ => config.with_no_client_auth(),
        };
        config.alpn_protocols = self.tls_alpn.iter().map(|name| name.clone().into_bytes()).collect();
        Ok(Some(config))
    }

    /// A flag that says nothing without TLS.
    fn of_no_use(&self) -> Option<&'static str> {
        [
            (self.cert.is_some(), "--cert"),
            (self.insecure, "--insecure"),
            (self.ciphers.is_some(), "--ciphers"),
            (self.tls_version.is_some(), "--tls-version"),
            (self.tls_alpn.is_some(), "--tls-alpn"),
        ]
        .into_iter()
        .find_map(|(is_set, flag)| is_set.then_some(flag))
    }

    fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        match self.tls_version.as_deref() {
            Some("tlsv1.2") => ONLY_12,
            Some(_) => ONLY_13,
            None => rustls::ALL_VERSIONS,
        }
    }

    fn provider(&self) -> Result<CryptoProvider, Failure> {
        let mut provider = rustls::crypto::ring::default_provider();
        if let Some(names) = &self.ciphers {
            let mut allowed = Vec::new();
            for name in names.split(':') {
                let found = CIPHERS.iter().find(|(known, _)| *known == name);
                let all = || CIPHERS.map(|(known, _)| known).join(", ");
                let (_, suite) = found.ok_or_else(|| Failure::new(format!("--ciphers {name}: there are {}", all())))?;
                allowed.push(*suite);
            }
            provider.cipher_suites.retain(|suite| allowed.contains(&suite.suite()));
        }
        Ok(provider)
    }

    fn roots(&self) -> Result<RootCertStore, Failure> {
        let mut roots = RootCertStore::empty();
        if let Some(file) = &self.cafile {
            roots.add_parsable_certificates(certificates(file)?);
        }
        if let Some(directory) = &self.capath {
            for entry in std::fs::read_dir(directory).map_err(|e| named(directory, e))? {
                let path = entry.map_err(|e| named(directory, e))?.path();
                // A directory of certificates may hold other files beside them.
                roots.add_parsable_certificates(certificates(&path).unwrap_or_default());
            }
        }
        if self.cafile.is_none() && self.capath.is_none() || self.tls_use_os_certs {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        if roots.is_empty() {
            let from = self.cafile.as_ref().or(self.capath.as_ref());
            let from = from.map_or_else(|| "the certificates of the system".into(), |path| path.display().to_string());
            return Err(Failure::new(format!("{from}: no certificate to trust")));
        }
        Ok(roots)
    }
}

/// All certificates of a file in PEM.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let pem = std::fs::read(file).map_err(|e| named(file, e))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(named(file, "no certificate in PEM")),
        all => all.map_err(|e| named(file, e)),
    }
}

/// The verifier of the library; with `--insecure` a certificate may have another name.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    any_name: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
        match self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is the last thing that is compared: issuer and dates have passed.
            Err(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) if self.any_name => {
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
