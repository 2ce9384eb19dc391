//! Puts the server together from its parts and brings it up: mirror first, then bootstrap objects, then ready.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use store::{Store, StoreError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::AdmissionPlugin;
use crate::admission::chain::{Chain, ChainError, Context};
use crate::attributes::UserInfo;
use crate::authn::bootstrap_token::BootstrapTokens;
use crate::authn::request_header::{RequestHeaderAuthenticator, RequestHeaderOptions};
use crate::authn::service_account::ServiceAccountTokens;
use crate::authn::static_tokens::StaticTokens;
use crate::authn::token_cache::TokenCache;
use crate::authn::union::{Anonymous, RequestAuthenticator, TokenUnion};
use crate::authn::x509::X509Authenticator;
use crate::authn::{Clock, InProcessUser, TokenAuthenticator, system_clock};
use crate::authz::Authorizer;
use crate::authz::escalation::NoEscalation;
use crate::authz::node::NodeAuthorizer;
use crate::authz::rbac::Rbac;
use crate::authz::union::{AlwaysAllow, AlwaysDeny, AuthorizerUnion};
use crate::bootstrap::{self, BootstrapOptions};
use crate::connect::Connector;
use crate::extensions::{Extensions, Version};
use crate::front::body::Body;
use crate::mirror::Mirror;
use crate::objects::Objects;
use crate::registry::Registry;
use crate::registry::catalog::{Catalog, Resource};
use crate::registry::handle::Handle;
use crate::registry::kinds::{KindOptions, strategy_of};
use crate::server::Server;
use crate::tokens::TokenConfig;

/// How often a bootstrap that the store refused is tried again.
const BOOTSTRAP_RETRY: Duration = Duration::from_millis(500);

/// What a server is built from; files are already read.
pub struct Config {
    pub store: Arc<dyn Store>,
    /// Other servers write to the same store.
    pub shared_store: bool,
    /// PEM of the authorities of client certificates.
    pub client_ca: Option<String>,
    /// PEM of the front proxy's authorities, and its headers.
    pub request_header: Option<(String, RequestHeaderOptions)>,
    pub tokens: TokenConfig,
    pub static_tokens: Option<StaticTokens>,
    pub anonymous: Anonymous,
    /// `--authorization-mode`, in order.
    pub authorization_modes: Vec<String>,
    pub admission: AdmissionOptions,
    /// PEM certificate and key that kubelets accept.
    pub kubelet_client: Option<(String, String)>,
    /// PEM of the authorities of kubelets' serving certificates; without it they are not checked, as upstream.
    pub kubelet_ca: Option<String>,
    pub service_ip: IpAddr,
    pub service_cidrs: Vec<String>,
    pub advertise_address: IpAddr,
    pub port: u16,
    pub version: Version,
}

/// Which admission plugins run, and what they are told.
#[derive(Clone, Default)]
pub struct AdmissionOptions {
    /// `--enable-admission-plugins`, beside the default ones.
    pub enabled: Vec<String>,
    /// `--disable-admission-plugins`.
    pub disabled: Vec<String>,
    /// By plugin, from `--admission-control-config-file`.
    pub configuration: BTreeMap<String, Value>,
    /// Plugins that are not built in.
    pub brought: Vec<Arc<dyn AdmissionPlugin>>,
}

/// A server that serves, and the tasks that keep it current.
#[derive(Debug, Clone)]
pub struct ApiServer {
    server: Arc<Server>,
    ready: CancellationToken,
}

/// Why a server could not be put together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AssemblyError {
    #[error("cannot read cluster state")]
    Store(#[from] StoreError),
    #[error("cannot use the client authorities")]
    ClientCa(#[from] crate::authn::x509::BundleError),
    #[error("cannot set up admission")]
    Admission(#[from] ChainError),
    #[error("unknown authorization mode {0:?}")]
    AuthorizationMode(String),
    #[error("cannot read the kubelet client certificate")]
    KubeletClient(#[source] rustls_pki_types::pem::Error),
    #[error("cannot set up TLS to kubelets")]
    Tls(#[from] rustls::Error),
}

impl ApiServer {
    /// Reads the store, starts following it, and returns a server that answers. It is ready when bootstrap is done.
    pub async fn start(
        mut config: Config,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Result<Self, AssemblyError> {
        let mirror = Mirror::new();
        let options = KindOptions { service_cidrs: config.service_cidrs.clone() };
        let catalog = Catalog::default().with(builtin_resources(&mirror, &options));
        mirror.load(config.store.as_ref()).await?;
        tasks.spawn(Arc::clone(&mirror).run(Arc::clone(&config.store), shutdown.clone()));
        let connector = connector(&config)?;
        let clock = system_clock();
        let registry = Arc::new(Registry::new(
            Arc::clone(&config.store),
            mirror,
            catalog,
            Arc::clone(&clock),
            config.shared_store,
        ));
        let objects: Arc<dyn Objects> = Arc::clone(&registry) as _;
        let tokens = Arc::new(config.tokens.clone());
        let static_tokens = config.static_tokens.take();
        let token_authenticator = token_authenticator(static_tokens, &tokens, &objects, &clock);
        let authenticator = request_authenticator(&config, &token_authenticator, clock)?;
        let rbac = Arc::new(Rbac::new(Arc::clone(&objects)));
        let authorizer = authorizer(&config.authorization_modes, &objects, &rbac)?;
        let clock = Arc::clone(&authenticator.clock);
        registry.set_admission(admission_chain(&config.admission, &registry, rbac, &authorizer, clock)?);
        let ready = CancellationToken::new();
        let server = Arc::new(Server {
            registry,
            authenticator: Arc::new(authenticator),
            authorizer,
            extensions: Extensions {
                tokens,
                token_authenticator,
                ready: ready.clone(),
                stopping: shutdown.clone(),
                version: config.version,
                documents: crate::openapi::Documents::default(),
                advertised: format!("{}:{}", config.advertise_address, config.port),
            },
            connector,
        });
        let bootstrap = BootstrapOptions {
            service_ip: config.service_ip,
            service_cidrs: config.service_cidrs,
            advertise_address: config.advertise_address,
            port: config.port,
            client_ca: config.client_ca,
            request_header: config.request_header,
            now: server.registry.now(),
        };
        tasks.spawn(bring_up(Arc::clone(&server), bootstrap, ready.clone(), shutdown.clone()));
        Ok(Self { server, ready })
    }

    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Returns when the bootstrap objects are there.
    pub async fn ready(&self) {
        self.ready.cancelled().await;
    }

    /// A transport for a client in this process. Requests skip the socket and authentication, nothing else.
    pub fn in_process<B>(
        &self,
        user: UserInfo,
    ) -> impl tower::Service<
        http::Request<B>,
        Response = http::Response<Body>,
        Error = std::convert::Infallible,
        Future: Send,
    > + Clone
    + Send
    + Sync
    + use<B>
    where
        B: http_body::Body<Data = bytes::Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let server = Arc::clone(&self.server);
        let user = InProcessUser(Arc::new(user));
        tower::service_fn(move |mut request: http::Request<B>| {
            request.extensions_mut().insert(user.clone());
            let server = Arc::clone(&server);
            async move { Ok(server.handle(request).await) }
        })
    }
}

/// Who bearer tokens stand for: static ones, service accounts', bootstrap tokens.
fn token_authenticator(
    static_tokens: Option<StaticTokens>,
    tokens: &Arc<TokenConfig>,
    objects: &Arc<dyn Objects>,
    clock: &Clock,
) -> Arc<dyn TokenAuthenticator> {
    let mut methods: Vec<Arc<dyn TokenAuthenticator>> = Vec::new();
    methods.extend(static_tokens.map(|own| Arc::new(own) as Arc<dyn TokenAuthenticator>));
    methods.push(Arc::new(ServiceAccountTokens::new(
        Arc::clone(tokens),
        Arc::clone(objects),
        Arc::clone(clock),
    )));
    methods.push(Arc::new(BootstrapTokens::new(Arc::clone(objects), Arc::clone(clock))));
    Arc::new(TokenCache::new(Arc::new(TokenUnion(methods)), Arc::clone(clock)))
}

fn request_authenticator(
    config: &Config,
    tokens: &Arc<dyn TokenAuthenticator>,
    clock: Clock,
) -> Result<RequestAuthenticator, AssemblyError> {
    let request_header = match &config.request_header {
        Some((bundle, options)) => {
            let authority = X509Authenticator::new(bundle.as_bytes())?;
            Some(RequestHeaderAuthenticator::new(authority, options.clone()))
        }
        None => None,
    };
    let x509 = match &config.client_ca {
        Some(bundle) => Some(Arc::new(X509Authenticator::new(bundle.as_bytes())?)),
        None => None,
    };
    Ok(RequestAuthenticator {
        request_header,
        x509,
        tokens: Some(Arc::clone(tokens)),
        anonymous: config.anonymous.clone(),
        clock,
    })
}

/// The admission plugins, and the check that nobody grants what they do not hold.
fn admission_chain(
    options: &AdmissionOptions,
    registry: &Arc<Registry>,
    rbac: Arc<Rbac>,
    authorizer: &Arc<dyn Authorizer>,
    clock: Clock,
) -> Result<Chain, AssemblyError> {
    let handle = Arc::new(Handle::new(registry));
    let context = Context {
        objects: Arc::clone(&handle) as _,
        writer: handle,
        authorizer: Arc::clone(authorizer),
        clock,
        configuration: options.configuration.clone(),
    };
    let mut chain = Chain::new(&context, &options.enabled, &options.disabled, &options.brought)?;
    chain.push(Arc::new(NoEscalation { rbac, authorizer: Arc::clone(authorizer) }));
    Ok(chain)
}

async fn bring_up(
    server: Arc<Server>,
    options: BootstrapOptions,
    ready: CancellationToken,
    shutdown: CancellationToken,
) {
    loop {
        let registry = server.registry.as_ref();
        match bootstrap::reconcile(&options, registry, registry).await {
            Ok(()) => return ready.cancel(),
            Err(error) => tracing::warn!(%error, "bootstrap objects are not all there yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(BOOTSTRAP_RETRY) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// The built-in kinds, each with its mirror and its strategy.
fn builtin_resources(mirror: &Mirror, options: &KindOptions) -> Vec<Arc<Resource>> {
    kinds::builtin()
        .iter()
        .map(|spec| {
            let stored =
                spec.versions.iter().any(|version| version.verbs.iter().any(|verb| &**verb == "get"));
            let paths = Resource::field_paths(spec);
            Arc::new(Resource {
                name: meta::names::GroupResource::new(spec.group.to_string(), spec.resource.to_string()),
                mirror: stored.then(|| mirror.add(&Resource::storage_name(spec), paths)),
                strategy: strategy_of(&spec.group, &spec.resource, options),
                custom: false,
                spec: schema::types::Ptr::Static(spec),
            })
        })
        .collect()
}

fn authorizer(
    modes: &[String],
    objects: &Arc<dyn Objects>,
    rbac: &Arc<Rbac>,
) -> Result<Arc<dyn Authorizer>, AssemblyError> {
    let mut union: Vec<Arc<dyn Authorizer>> = Vec::new();
    for mode in modes {
        union.push(match mode.as_str() {
            "Node" => Arc::new(NodeAuthorizer::new(Arc::clone(objects), bootstrap::policy::node_rules())),
            "RBAC" => Arc::clone(rbac) as _,
            "AlwaysAllow" => Arc::new(AlwaysAllow),
            "AlwaysDeny" => Arc::new(AlwaysDeny),
            other => return Err(AssemblyError::AuthorizationMode(other.to_owned())),
        });
    }
    Ok(Arc::new(AuthorizerUnion(union)))
}

fn connector(config: &Config) -> Result<Connector, AssemblyError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        || ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let unchecked = Arc::new(unchecked::Unchecked::new(&provider));
    let kubelet = match &config.kubelet_ca {
        Some(bundle) => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
                roots.add(certificate.map_err(AssemblyError::KubeletClient)?)?;
            }
            builder()?.with_root_certificates(roots)
        }
        None => builder()?.dangerous().with_custom_certificate_verifier(Arc::clone(&unchecked) as _),
    };
    let kubelet = match &config.kubelet_client {
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(AssemblyError::KubeletClient)?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(AssemblyError::KubeletClient)?;
            kubelet.with_client_auth_cert(chain, key)?
        }
        None => kubelet.with_no_client_auth(),
    };
    let proxy = builder()?.dangerous().with_custom_certificate_verifier(unchecked).with_no_client_auth();
    Ok(Connector { kubelet_tls: Arc::new(kubelet), proxy_tls: Arc::new(proxy), relays: TaskTracker::new() })
}

/// For peers whose certificates nobody here can check.
mod unchecked {
    use std::sync::Arc;

    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    };
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

    #[derive(Debug)]
    pub(super) struct Unchecked(WebPkiSupportedAlgorithms);

    impl Unchecked {
        pub(super) fn new(provider: &Arc<CryptoProvider>) -> Self {
            Self(provider.signature_verification_algorithms)
        }
    }

    impl ServerCertVerifier for Unchecked {
        fn verify_server_cert(
            &self,
            _leaf: &CertificateDer<'_>,
            _intermediates: &[CertificateDer<'_>],
            _name: &ServerName<'_>,
            _ocsp: &[u8],
            _now: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, certificate, signature, &self.0)
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signature, &self.0)
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.supported_schemes()
        }
    }
}

impl std::fmt::Debug for AdmissionOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = f.debug_struct("AdmissionOptions");
        text.field("enabled", &self.enabled).field("disabled", &self.disabled).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("advertise_address", &self.advertise_address).finish_non_exhaustive()
    }
}
