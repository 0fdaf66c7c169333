//! Where the Workload API is: a Unix socket, or an IP address and a port.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The environment variable that names the endpoint (Workload Endpoint section 4).
pub const ENDPOINT_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

// `sockaddr_un.sun_path` without its terminating zero.
#[cfg(any(target_os = "linux", target_os = "android"))]
const MAX_SOCKET_PATH: usize = 107;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const MAX_SOCKET_PATH: usize = 103;

/// The address of a Workload API (SPIFFE Workload Endpoint section 4): `unix:///path/to/socket`
/// (or `unix:/path/to/socket`), or `tcp://IP:port`.
///
/// ```
/// use tower_spiffe::workload_api::Endpoint;
///
/// let endpoint: Endpoint = "unix:///run/spire/agent.sock".parse()?;
/// assert_eq!(endpoint.to_string(), "unix:///run/spire/agent.sock");
/// assert!("tcp://localhost:8080".parse::<Endpoint>().is_err(), "an IP address, not a name");
/// # Ok::<(), tower_spiffe::workload_api::EndpointError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Endpoint(Address);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl Endpoint {
    /// Reads the endpoint from the environment variable `SPIFFE_ENDPOINT_SOCKET`.
    ///
    /// # Errors
    /// The variable is unset, empty, or not a valid endpoint.
    pub fn from_env() -> Result<Self, EndpointError> {
        use EndpointErrorReason as Reason;
        let error = |reason, value: &str| EndpointError::new(reason, value, true);
        let value = std::env::var_os(ENDPOINT_VARIABLE).ok_or_else(|| error(Reason::Unset, ""))?;
        let not_text = || error(Reason::Character, &value.to_string_lossy());
        Self::parse(value.to_str().ok_or_else(not_text)?, true)
    }

    /// Returns the path of the Unix socket; `None` for TCP.
    pub fn unix_path(&self) -> Option<&Path> {
        match &self.0 {
            Address::Unix(path) => Some(path),
            Address::Tcp(_) => None,
        }
    }

    /// Returns the address and port; `None` for a Unix socket.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.0 {
            Address::Unix(_) => None,
            Address::Tcp(address) => Some(*address),
        }
    }

    #[cfg(all(unix, feature = "testing"))]
    pub(crate) fn of_path(path: PathBuf) -> Self {
        Self(Address::Unix(path))
    }

    #[cfg(feature = "testing")]
    pub(crate) fn of_address(address: SocketAddr) -> Self {
        Self(Address::Tcp(address))
    }

    fn parse(value: &str, from_env: bool) -> Result<Self, EndpointError> {
        address(value)
            .map(Self)
            .map_err(|reason| EndpointError::new(reason, value, from_env))
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(value: &str) -> Result<Self, EndpointError> {
        Self::parse(value, false)
    }
}

impl TryFrom<&str> for Endpoint {
    type Error = EndpointError;

    fn try_from(value: &str) -> Result<Self, EndpointError> {
        value.parse()
    }
}

impl TryFrom<String> for Endpoint {
    type Error = EndpointError;

    fn try_from(value: String) -> Result<Self, EndpointError> {
        value.parse()
    }
}

impl TryFrom<&String> for Endpoint {
    type Error = EndpointError;

    fn try_from(value: &String) -> Result<Self, EndpointError> {
        value.parse()
    }
}

/// Writes it in the form of the environment variable; parsing it returns the same endpoint.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Address::Unix(path) => {
                f.write_str("unix://")?;
                percent_encoded(path.as_os_str().as_encoded_bytes(), f)
            }
            Address::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

fn address(value: &str) -> Result<Address, EndpointErrorReason> {
    use EndpointErrorReason as Reason;
    if value.is_empty() {
        return Err(Reason::Empty);
    }
    let Some((scheme, rest)) = value.split_once(':') else {
        return Err(Reason::Scheme);
    };
    // Schemes are case-insensitive (RFC 3986 section 3.1).
    let unix = scheme.eq_ignore_ascii_case("unix");
    if !unix && !scheme.eq_ignore_ascii_case("tcp") {
        return Err(Reason::Scheme);
    }
    if !rest.bytes().all(is_uri_byte) {
        return Err(Reason::Character);
    }
    if rest.contains(['?', '#']) {
        return Err(Reason::QueryOrFragment);
    }
    if unix { unix_path(rest) } else { tcp(rest) }
}

// unreserved, sub-delims, gen-delims and `%` (RFC 3986 section 2).
fn is_uri_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:/?#[]@%".contains(&byte)
}

fn unix_path(rest: &str) -> Result<Address, EndpointErrorReason> {
    use EndpointErrorReason as Reason;
    let path = match rest.strip_prefix("//") {
        None => rest,
        // An empty authority, then the path.
        Some(after) if after.starts_with('/') => after,
        Some("") => return Err(Reason::NoPath),
        Some(_) => return Err(Reason::UnixAuthority),
    };
    if !path.starts_with('/') {
        return Err(Reason::RelativePath);
    }
    let path = percent_decoded(path).ok_or(Reason::Character)?;
    // Decoded: `%2F` is a slash too.
    if path.ends_with('/') {
        return Err(Reason::NoPath);
    }
    if path.len() > MAX_SOCKET_PATH {
        return Err(Reason::PathTooLong);
    }
    if cfg!(unix) {
        Ok(Address::Unix(PathBuf::from(path)))
    } else {
        Err(Reason::NoUnixSockets)
    }
}

/// Decodes the `%XX` of a path. `None` for an incomplete triplet, a zero byte or invalid UTF-8.
fn percent_decoded(path: &str) -> Option<String> {
    let mut bytes = path.bytes();
    let mut out = Vec::with_capacity(path.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let decoded = u8::try_from(digit()? * 16 + digit()?).ok()?;
        if decoded == 0 {
            return None;
        }
        out.push(decoded);
    }
    String::from_utf8(out).ok()
}

/// Encodes a path: the result has only bytes that a URI may have, so no line breaks.
fn percent_encoded(path: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for &byte in path {
        if is_uri_byte(byte) && !b"%?#".contains(&byte) {
            fmt::Write::write_char(f, char::from(byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

fn tcp(rest: &str) -> Result<Address, EndpointErrorReason> {
    use EndpointErrorReason as Reason;
    let authority = rest.strip_prefix("//").ok_or(Reason::TcpForm)?;
    if authority.contains('@') {
        return Err(Reason::UserInfo);
    }
    if authority.contains('/') {
        return Err(Reason::TcpPath);
    }
    // The last colon is before the port; an IPv6 address is in brackets.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (authority, ""),
    };
    if host.is_empty() {
        return Err(Reason::TcpForm);
    }
    let ip = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(v6) => v6.parse::<Ipv6Addr>().map(IpAddr::V6),
        None => host.parse::<Ipv4Addr>().map(IpAddr::V4),
    }
    .map_err(|_| Reason::HostName)?;
    // `u16::from_str` accepts `+1`.
    match port.parse::<u16>() {
        Ok(number) if number > 0 && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Ok(Address::Tcp(SocketAddr::new(ip, number)))
        }
        _ => Err(Reason::Port),
    }
}

/// Why an endpoint is missing or invalid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointError {
    reason: EndpointErrorReason,
    // Bounded and escaped, for the message.
    shown: Box<str>,
    from_env: bool,
}

/// The class of an [`EndpointError`], by the rules of Workload Endpoint section 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndpointErrorReason {
    /// No endpoint was given, and the environment variable is unset.
    Unset,
    /// The value is empty.
    Empty,
    /// The scheme is neither `unix` nor `tcp`.
    Scheme,
    /// A character that is not allowed in a URI, or an incomplete percent-encoding.
    Character,
    /// A query or a fragment.
    QueryOrFragment,
    /// `unix:` with a host.
    UnixAuthority,
    /// `unix:` with a path that does not begin with `/`.
    RelativePath,
    /// `unix:` without the path of a socket.
    NoPath,
    /// The path is longer than this platform allows for a socket.
    PathTooLong,
    /// This platform has no Unix sockets.
    NoUnixSockets,
    /// `tcp:` without `//IP:port`.
    TcpForm,
    /// `tcp:` with a host that is not an IP address.
    HostName,
    /// `tcp:` without a port from 1 to 65535.
    Port,
    /// `tcp:` with a path.
    TcpPath,
    /// `tcp:` with a user.
    UserInfo,
}

impl EndpointError {
    fn new(reason: EndpointErrorReason, value: &str, from_env: bool) -> Self {
        const SHOWN: usize = 120;
        let mut shown: String = value
            .chars()
            .take(SHOWN)
            .flat_map(char::escape_debug)
            .collect();
        if value.chars().nth(SHOWN).is_some() {
            shown.push('…');
        }
        Self {
            reason,
            shown: shown.into(),
            from_env,
        }
    }

    /// Returns the class.
    pub fn reason(&self) -> EndpointErrorReason {
        self.reason
    }
}

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use EndpointErrorReason as Reason;
        if self.reason == Reason::Unset {
            return write!(
                f,
                "no Workload API endpoint: none was given and {ENDPOINT_VARIABLE} is unset; \
                 set it to unix:///path/to/socket, the socket of your SPIFFE agent"
            );
        }
        let place = if self.from_env {
            ENDPOINT_VARIABLE
        } else {
            "the given value"
        };
        let shown = &self.shown;
        write!(f, "no Workload API endpoint: {place} is \"{shown}\": ")?;
        f.write_str(match self.reason {
            Reason::Unset | Reason::Empty => {
                "it is empty; write unix:///path/to/socket or tcp://IP:port"
            }
            Reason::Scheme => {
                "it begins with neither unix: nor tcp:; write unix:///path/to/socket or tcp://IP:port"
            }
            Reason::Character => {
                "it has a character that is not allowed in a URI; percent-encode it (a space is %20), \
                 or remove it (such as a line break at the end)"
            }
            Reason::QueryOrFragment => {
                "a query or fragment is not allowed; write unix:///path/to/socket or tcp://IP:port"
            }
            Reason::UnixAuthority => {
                "what follows unix:// is read as a host; write three slashes: unix:///path/to/socket"
            }
            Reason::RelativePath => {
                "the path does not begin with a slash; write unix:///path/to/socket"
            }
            Reason::NoPath => "the path of the socket is missing; write unix:///path/to/socket",
            Reason::PathTooLong => {
                return write!(
                    f,
                    "the path is longer than the {MAX_SOCKET_PATH} bytes allowed for a socket here; \
                     move the socket, or use a link to it"
                );
            }
            Reason::NoUnixSockets => {
                "this platform has no Unix sockets; configure the agent to listen on tcp://IP:port"
            }
            Reason::TcpForm => "the address is missing; write tcp://IP:port",
            Reason::HostName => "the host is not an IP address; write tcp://127.0.0.1:port",
            Reason::Port => "there is no port from 1 to 65535; write tcp://127.0.0.1:port",
            Reason::TcpPath => {
                "there is text after the port; write tcp://IP:port, without a slash at the end"
            }
            Reason::UserInfo => "a user is not allowed; write tcp://IP:port",
        })
    }
}

impl std::error::Error for EndpointError {}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
