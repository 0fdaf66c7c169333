//! The calls.

use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use super::bundles::{BundlesCodec, JwtBundlesMessage};
use super::channel::{Line, Numbered, Timing};
use super::connect::Connector;
use super::endpoint::Endpoint;
use super::error::{Call, WorkloadApiError, WorkloadApiErrorReason as Reason};
use super::pb;
use super::pb::spiffe_workload_api_client::SpiffeWorkloadApiClient as Stub;
use super::stream::JwtBundleStream;
use super::validated::ValidatedJwtSvid;
use crate::clock::{Clock, SystemClock};
use crate::identity::SpiffeId;
use crate::presentable::{debug_fields, presentable};
use crate::runtime;
use crate::token::{JwtSvid, SvidRequest};

/// A client of the Workload API's JWT profile. A clone shares the connection. The first call opens it,
/// and a later one reopens it after it broke.
///
/// Each call is one request, without caching or retries. `JwtSource` does both.
/// A call has a time limit, so it needs a tokio runtime with timers where it is awaited; without
/// one it returns `NoRuntime`.
#[derive(Clone)]
pub struct WorkloadApiClient {
    line: Arc<Line>,
    max_message: usize,
}

/// The options of a [`WorkloadApiClient`].
#[derive(Clone)]
#[must_use]
pub struct WorkloadApiClientBuilder {
    connector: Connector,
    timing: Timing,
    max_message: usize,
    clock: Arc<dyn Clock>,
}

impl WorkloadApiClient {
    /// Creates a client for this endpoint. It connects at the first call, which fails if there is no agent.
    ///
    /// # Errors
    /// As [`WorkloadApiClientBuilder::build`].
    pub fn connect(endpoint: &Endpoint) -> Result<Self, WorkloadApiError> {
        Self::builder(endpoint).build()
    }

    /// Creates a builder of a client for this endpoint.
    pub fn builder(endpoint: &Endpoint) -> WorkloadApiClientBuilder {
        WorkloadApiClientBuilder::new(Connector::to_endpoint(endpoint))
    }

    /// Creates a builder of a client that connects by `dial`: to a `tokio::io::duplex` in a test or a
    /// proxied socket, for example. `dial` is called for every connection.
    pub fn with_connector<F, Fut, T>(dial: F) -> WorkloadApiClientBuilder
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<T>> + Send + 'static,
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        WorkloadApiClientBuilder::new(Connector::new("a given connector".into(), false, dial))
    }

    /// Calls `FetchJWTSVID` for one token. If the request has neither an ID nor a hint, it returns the
    /// first token of the response. With several identities, SPIRE's order is not defined.
    ///
    /// With a hint, the agent signs a token for every identity, because the call has no field for
    /// the hint.
    ///
    /// The expiry of the token is not checked: the clocks may differ, and a cache has its own rules.
    ///
    /// # Errors
    /// The call failed, or no identity has this hint.
    pub async fn fetch_jwt_svid(&self, request: &SvidRequest) -> Result<JwtSvid, WorkloadApiError> {
        let svids = self.request_svids(request, request.spiffe_id()).await?;
        let by_id = |id: &SpiffeId| svids.iter().find(|one| one.spiffe_id == id.as_str());
        let one = match (request.hint(), request.spiffe_id()) {
            (Some(hint), _) => {
                let fits = |one: &&pb::Jwtsvid| one.hint == hint && hint.len() <= MAX_HINT_LEN;
                svids.iter().find(fits).ok_or_else(|| {
                    let text = format!(
                        "the agent at {} has no identity with the hint \"{}\" for this workload; add \
                         the hint to its registration entry, or request by SPIFFE ID",
                        self.line.place(),
                        presentable(hint)
                    );
                    WorkloadApiError::new(Call::FetchJwtSvid, Reason::NoSuchHint, text)
                })?
            }
            (None, id) => id
                .and_then(by_id)
                .or(svids.first())
                .ok_or_else(|| self.invalid(NO_TOKEN))?,
        };
        // Tokens of other identities are not checked.
        self.accept(request, one)
    }

    /// Calls `FetchJWTSVID` for the tokens of all identities, or of the one that the request names. A
    /// hint in the request is ignored.
    ///
    /// Of several tokens with the same hint only the first is returned (Workload API section
    /// 6.2.1). Tokens without a hint are all returned.
    ///
    /// # Errors
    /// The call failed, or a token does not match the request.
    pub async fn fetch_jwt_svids(
        &self,
        request: &SvidRequest,
    ) -> Result<Vec<JwtSvid>, WorkloadApiError> {
        let svids = self.request_svids(request, request.spiffe_id()).await?;
        svids.iter().map(|one| self.accept(request, one)).collect()
    }

    /// Fetches a token of the identity that had the hint before; `None` if it no longer has it.
    pub(crate) async fn fetch_jwt_svid_of(
        &self,
        request: &SvidRequest,
        hint: &str,
        id: &SpiffeId,
    ) -> Result<Option<JwtSvid>, WorkloadApiError> {
        let svids = self.request_svids(request, Some(id)).await?;
        let fits = |one: &&pb::Jwtsvid| one.hint == hint && one.spiffe_id == id.as_str();
        let one = svids.iter().find(fits);
        one.map(|one| self.accept(request, one)).transpose()
    }

    /// The tokens of the response; of several with the same hint, the first.
    async fn request_svids(
        &self,
        request: &SvidRequest,
        id: Option<&SpiffeId>,
    ) -> Result<Vec<pb::Jwtsvid>, WorkloadApiError> {
        const CALL: Call = Call::FetchJwtSvid;
        let message = pb::JwtsvidRequest {
            audience: request.audiences().map(str::to_owned).collect(),
            spiffe_id: id.map(ToString::to_string).unwrap_or_default(),
        };
        let ask = async |channel, most| stub(channel, most).fetch_jwtsvid(asking(message)).await;
        let (answer, _) = self.call(CALL, request.spiffe_id(), ask).await?;
        let mut svids = answer.svids;
        if svids.is_empty() {
            return Err(self.invalid(NO_TOKEN));
        }
        let mut hints = HashSet::new();
        svids.retain(|one| one.hint.is_empty() || hints.insert(one.hint.clone()));
        Ok(svids)
    }

    /// Calls `FetchJWTBundles`: every message is the whole set of bundles.
    ///
    /// # Errors
    /// The stream could not be opened.
    pub async fn fetch_jwt_bundles(&self) -> Result<JwtBundleStream, WorkloadApiError> {
        let by = Instant::now().checked_add(self.line.timing().first_message);
        let (opened, over) = self.call(Call::FetchJwtBundles, None, open_bundles).await?;
        Ok(JwtBundleStream::new(opened, self.line.clone(), over, by))
    }

    /// Calls `ValidateJWTSVID`: the agent validates a token.
    ///
    /// The SPIFFE Workload API prefers this call (section 6.3). The layers of this crate validate
    /// locally anyway: the call costs a workload attestation for each request, fails while the agent is
    /// unavailable, and shows the caller's token to the owner of the socket.
    ///
    /// # Errors
    /// The call failed; `InvalidArgument` if the agent rejects the token.
    pub async fn validate_jwt_svid(
        &self,
        audience: &str,
        token: &str,
    ) -> Result<ValidatedJwtSvid, WorkloadApiError> {
        const CALL: Call = Call::ValidateJwtSvid;
        let missing = match (audience, token) {
            ("", _) => Some("the audience is empty; name the service that the token is for"),
            (_, "") => Some("the token is empty; pass the one that the caller sent"),
            _ => None,
        };
        if let Some(missing) = missing {
            let place = self.line.place();
            let text = format!("the agent at {place} was not called: {missing}");
            return Err(WorkloadApiError::new(CALL, Reason::InvalidRequest, text));
        }
        let message = pb::ValidateJwtsvidRequest {
            audience: audience.to_owned(),
            svid: token.to_owned(),
        };
        let ask = async |channel, most| stub(channel, most).validate_jwtsvid(asking(message)).await;
        let (answer, _) = self.call(CALL, None, ask).await?;
        ValidatedJwtSvid::from_answer(answer, self.line.place())
    }

    pub(crate) fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// Makes a call on the current connection, and returns the response and the connection.
    async fn call<T>(
        &self,
        call: Call,
        asked_for: Option<&SpiffeId>,
        ask: impl AsyncFnOnce(Channel, usize) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<(T, Arc<Numbered>), WorkloadApiError> {
        let (place, timing) = (self.line.place(), self.line.timing());
        let failed = |reason, text: String| WorkloadApiError::new(call, reason, text);
        let Some(over) = self.line.current() else {
            let text = format!("the client of {place} was shut down");
            return Err(failed(Reason::Disconnected, text));
        };
        if let Err(missing) = runtime::with_timers() {
            let text = format!("the agent at {place} was not called: {missing}");
            return Err(failed(Reason::NoRuntime, text));
        }
        let (within, most) = match call {
            Call::FetchJwtBundles => (timing.first_message, self.max_message),
            _ => (timing.call, self.max_message.min(MAX_ANSWER)),
        };
        let asked = ask(over.channel.clone(), most);
        let error = match tokio::time::timeout(within, asked).await {
            Ok(Ok(answer)) => return Ok((answer.into_inner(), over)),
            Ok(Err(status)) => {
                let not_http2 = self.line.pulse().not_http2();
                WorkloadApiError::from_status(call, place, not_http2, &status, asked_for)
            }
            Err(_) => failed(
                Reason::Timeout,
                format!(
                    "the agent at {place} did not respond within {within:?}; check that it is \
                     healthy and can reach its server"
                ),
            ),
        };
        if error.casts_doubt_on_connection() {
            self.line.doubt(over.generation);
        }
        Err(error)
    }

    /// The error for an invalid response.
    fn invalid(&self, what: impl fmt::Display) -> WorkloadApiError {
        WorkloadApiError::invalid_answer(Call::FetchJwtSvid, self.line.place(), what)
    }

    /// Returns one token of a response, if it matches the request.
    fn accept(
        &self,
        request: &SvidRequest,
        answer: &pb::Jwtsvid,
    ) -> Result<JwtSvid, WorkloadApiError> {
        // A longer hint can never be requested, and should not be stored (WA-12).
        let hint = if answer.hint.len() <= MAX_HINT_LEN {
            &answer.hint
        } else {
            ""
        };
        let svid = JwtSvid::parse_unverified(&answer.svid, hint)
            .map_err(|error| self.invalid(format_args!("its token cannot be used: {error}")))?;
        let id = svid.spiffe_id();
        // An ID may be long, and is chosen by the issuer.
        let shown = presentable(id.as_str());
        if answer.spiffe_id != id.as_str() {
            return Err(self.invalid(format_args!(
                "its SPIFFE ID is not the `sub` of its token, {shown}"
            )));
        }
        if let Some(wanted) = request.spiffe_id()
            && wanted != id
        {
            let wanted = presentable(wanted.as_str());
            return Err(self.invalid(format_args!(
                "the request is for {wanted}, but the token is for {shown}"
            )));
        }
        if !request.has_audiences_of(&svid) {
            return Err(self.invalid("its token is for other audiences than requested"));
        }
        Ok(svid)
    }
}

debug_fields!(WorkloadApiClient, |it| { endpoint: it.line.place() });

impl WorkloadApiClientBuilder {
    pub(crate) fn new(connector: Connector) -> Self {
        Self {
            connector,
            timing: Timing::default(),
            max_message: DEFAULT_MAX_MESSAGE_BYTES,
            clock: SystemClock::shared(),
        }
    }

    /// Limits the time to connect. 5 s by default.
    pub fn connect_timeout(mut self, within: Duration) -> Self {
        self.timing.connect = within;
        self
    }

    /// Limits the time to a single response. 35 s by default: SPIRE's agent takes up to 30 s while its
    /// server is unreachable.
    pub fn call_timeout(mut self, within: Duration) -> Self {
        self.timing.call = within;
        self
    }

    /// Limits the time to the first message of a stream. 10 s by default.
    pub fn first_message_timeout(mut self, within: Duration) -> Self {
        self.timing.first_message = within;
        self
    }

    /// Sets the HTTP/2 keepalive while a call or a stream is open: the interval of pings, and how long to
    /// wait for the response. 305 s and 20 s by default. A default grpc-go server, such as SPIRE's agent,
    /// closes connections that ping more often than every 5 minutes.
    pub fn keepalive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.timing.ping_interval = interval;
        self.timing.ping_timeout = timeout;
        self
    }

    /// Limits the size of one message of the bundle stream, in bytes. 64 MiB by default. It is
    /// checked before the message is decoded; a larger message ends the stream with
    /// [`MessageTooLarge`](super::WorkloadApiErrorReason::MessageTooLarge). Responses of the other
    /// calls have this limit too, but never more than 4 MiB.
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message = bytes;
        self
    }

    pub(crate) fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// Sets the clock. The system clock by default.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Builds the client. Its connections live on the tokio runtime of this call.
    ///
    /// # Errors
    /// There is no tokio runtime here, or it has no timers, or no I/O for an endpoint.
    pub fn build(self) -> Result<WorkloadApiClient, WorkloadApiError> {
        match self.connector.runtime() {
            Ok(runtime) => Ok(self.build_on(runtime)),
            Err(missing) => Err(WorkloadApiError::new(
                Call::FetchJwtBundles,
                Reason::NoRuntime,
                format!("a client cannot be built: {missing}"),
            )),
        }
    }

    pub(crate) fn build_on(self, runtime: Handle) -> WorkloadApiClient {
        WorkloadApiClient {
            line: Arc::new(Line::new(self.connector, self.timing, runtime, self.clock)),
            max_message: self.max_message,
        }
    }
}

debug_fields!(WorkloadApiClientBuilder, |it| {
    endpoint: it.connector.place(),
    timing: it.timing,
});

/// The default limit of one message of the bundle stream: 64 MiB.
pub(crate) const DEFAULT_MAX_MESSAGE_BYTES: usize = 64 << 20;

fn stub(channel: Channel, max_message: usize) -> Stub<Channel> {
    Stub::new(channel).max_decoding_message_size(max_message)
}

/// Calls `FetchJWTBundles` with another codec than the generated stub.
async fn open_bundles(
    channel: Channel,
    max_message: usize,
) -> Result<tonic::Response<tonic::Streaming<JwtBundlesMessage>>, tonic::Status> {
    let path = PathAndQuery::from_static("/SpiffeWorkloadAPI/FetchJWTBundles");
    let mut calls = Grpc::new(channel).max_decoding_message_size(max_message);
    // The text of the generated stub.
    let not_ready = |error| tonic::Status::unknown(format!("Service was not ready: {error}"));
    calls.ready().await.map_err(not_ready)?;
    let request = asking(pb::JwtBundlesRequest {});
    calls.server_streaming(request, path, BundlesCodec).await
}

/// A request with the header that each must have once (EP-5).
fn asking<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let header = MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", header);
    request
}

/// A single response has a token per identity, or the claims of one token: tonic's default limit is
/// enough.
const MAX_ANSWER: usize = 4 << 20;

const NO_TOKEN: &str = "it has no token";

/// Issuers should not use longer ones (SPIFFE Workload API section 8).
const MAX_HINT_LEN: usize = 1024;
