//! The destination of a request: scheme, host and port. They are compared as parsed values, never
//! as raw text.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use http::Uri;
use http::uri::{Authority, Scheme};

use super::Plaintext;

/// The scheme, host and port that requests go to: `https://reports`, `https://reports:8443`,
/// `http://[::1]:8080`.
///
/// ```
/// use tower_spiffe::client::{Origin, OriginError};
///
/// let origin: Origin = "https://Reports.example.org".parse()?;
/// assert_eq!(origin.to_string(), "https://reports.example.org");
/// assert_eq!((origin.host(), origin.port()), ("reports.example.org", 443));
///
/// // An absolute name, with a dot at its end, is a different origin.
/// let absolute: Origin = "https://reports.example.org.".parse()?;
/// assert_ne!(absolute, origin);
///
/// assert_eq!("https://user@reports".parse::<Origin>(), Err(OriginError::UserInfo));
/// assert_eq!("https://reports/v1".parse::<Origin>(), Err(OriginError::Path));
/// # Ok::<(), OriginError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    https: bool,
    /// The usual form: the host in lower case, and the port if it is not the default port of the
    /// scheme.
    authority: Box<str>,
    /// The length of the host in it.
    host_len: usize,
    port: u16,
}

/// Why a text is not a valid origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OriginError {
    /// It is not a URI with a scheme and an authority, or not ASCII.
    Malformed,
    /// The scheme is not `https` or `http`.
    Scheme,
    /// It has a user name or a password.
    UserInfo,
    /// The host is missing, has an empty label, or has an invalid character: a percent sign, or a
    /// wildcard that is not allowed here. An absolute host name may end with one dot; an address
    /// may not.
    Host,
    /// The port is 0 or not a number.
    Port,
    /// The text has a path, a query or a fragment after the authority.
    Path,
}

impl Origin {
    /// Returns the scheme: `https` or `http`.
    pub fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    /// Returns the host in lower case; an IPv6 address is in brackets.
    pub fn host(&self) -> &str {
        self.authority.get(..self.host_len).unwrap_or_default()
    }

    /// Returns the port. If the text has none, this is the default port of the scheme.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn target(&self) -> Target<'_> {
        Target {
            https: self.https,
            host: self.host(),
            port: self.port,
        }
    }

    /// Whether the text of this authority of an https URI equals this origin. If not, the URI can
    /// still have this origin in another spelling.
    #[inline]
    pub(crate) fn is_https_as_written(&self, authority: &str) -> bool {
        self.https && *self.authority == *authority
    }
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let uri: Uri = text.parse().map_err(|_| OriginError::Malformed)?;
        let authority = uri.authority().ok_or(OriginError::Malformed)?;
        if authority.as_str().contains('@') {
            return Err(OriginError::UserInfo);
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || text.contains('#') {
            return Err(OriginError::Path);
        }
        let target = Target::of_uri(&uri)?.ok_or(OriginError::Malformed)?;
        Ok(target.to_origin())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target().fmt(f)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for OriginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "expected `https://host` or `https://host:port`, in ASCII",
            Self::Scheme => "the scheme of an origin is `https` or `http`",
            Self::UserInfo => "an origin has no user name and no password",
            Self::Host => {
                "the host is missing, has an empty label, or has an invalid character; a host \
                 name may end with one dot, an address may not"
            }
            Self::Port => "the port is not a number from 1 to 65535",
            Self::Path => "an origin has no path; remove everything after the host and port",
        })
    }
}

impl std::error::Error for OriginError {}

/// The destination of a request, parsed only as far as needed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Destination<'a> {
    /// The URI, not parsed yet.
    Uri(&'a Uri),
    /// Already parsed by the client.
    Read(Result<Option<Target<'a>>, OriginError>),
}

impl<'a> Destination<'a> {
    /// The authority of an https URI, as it is written.
    #[inline]
    pub(crate) fn https_authority(self) -> Option<&'a str> {
        match self {
            Self::Uri(uri) if uri.scheme() == Some(&Scheme::HTTPS) => {
                uri.authority().map(Authority::as_str)
            }
            _ => None,
        }
    }

    /// Returns the target; `None` if the URI has neither scheme nor authority.
    pub(crate) fn target(self) -> Result<Option<Target<'a>>, OriginError> {
        match self {
            Self::Uri(uri) => Target::of_uri(uri),
            Self::Read(target) => target,
        }
    }
}

/// An [`Origin`] borrowed from a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    https: bool,
    /// In upper or lower case. Comparisons ignore the case.
    host: &'a str,
    port: u16,
}

impl<'a> Target<'a> {
    /// Returns the target of `uri`; `None` if it has neither scheme nor authority. An authority
    /// without a scheme is ambiguous: one client connects with TLS, another in plaintext.
    pub(crate) fn of_uri(uri: &'a Uri) -> Result<Option<Self>, OriginError> {
        let (scheme, authority) = match (uri.scheme_str(), uri.authority()) {
            (Some(scheme), Some(authority)) => (scheme, authority),
            (None, None) => return Ok(None),
            _ => return Err(OriginError::Malformed),
        };
        let https = scheme_of(scheme)?;
        let port = port_of(authority)?.unwrap_or(default_port(https));
        Self::new(https, authority.host(), port).map(Some)
    }

    pub(crate) fn new(https: bool, host: &'a str, port: u16) -> Result<Self, OriginError> {
        if port == 0 {
            return Err(OriginError::Port);
        }
        if !is_host(host) {
            return Err(OriginError::Host);
        }
        Ok(Self { https, host, port })
    }

    pub(crate) fn to_origin(self) -> Origin {
        let mut authority = self.host.to_ascii_lowercase();
        let host_len = authority.len();
        if self.port != default_port(self.https) {
            authority.push_str(&format!(":{}", self.port));
        }
        Origin {
            https: self.https,
            authority: authority.into(),
            host_len,
            port: self.port,
        }
    }

    /// Whether a token may be sent there: over https, or as `plaintext` allows.
    pub(crate) fn may_get_token(self, plaintext: Option<Plaintext>) -> bool {
        self.https
            || match plaintext {
                Some(Plaintext::Loopback) => self.is_loopback(),
                Some(Plaintext::UnixSocket | Plaintext::Any) => true,
                None => false,
            }
    }

    /// Whether the host is the host of `domain` with exactly this many labels in front, and scheme
    /// and port are the same.
    pub(crate) fn is_below(self, domain: Target<'_>, labels: usize) -> bool {
        let at = self.host.len().checked_sub(domain.host.len());
        let Some((front, end)) = at.and_then(|at| self.host.split_at_checked(at)) else {
            return false;
        };
        self.https == domain.https
            && self.port == domain.port
            && end.eq_ignore_ascii_case(domain.host)
            && front.strip_suffix('.').is_some_and(|front| {
                front.split('.').count() == labels && front.split('.').all(|it| !it.is_empty())
            })
    }

    /// Whether a `Host` header with this value names the same host and port.
    pub(crate) fn is_host_header(self, value: &[u8]) -> bool {
        let Some((host, port)) = value.split_at_checked(self.host.len()) else {
            return false;
        };
        host.eq_ignore_ascii_case(self.host.as_bytes())
            && read_port(port)
                .is_ok_and(|port| port.unwrap_or(default_port(self.https)) == self.port)
    }

    /// A note for messages about an absolute host name, whose dot is easily overlooked.
    pub(crate) fn dot_note(self) -> &'static str {
        if self.host.ends_with('.') {
            "; its host ends with a dot: without the dot it is another origin"
        } else {
            ""
        }
    }

    /// Whether the host is this machine in a form that every program reads the same way:
    /// 127.0.0.0/8 in four decimal parts, `::1`, or `localhost`.
    fn is_loopback(self) -> bool {
        if self.host.eq_ignore_ascii_case("localhost") {
            return true;
        }
        match self
            .host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            Some(address) => address.parse() == Ok(Ipv6Addr::LOCALHOST),
            None => self
                .host
                .parse::<Ipv4Addr>()
                .is_ok_and(|address| address.is_loopback()),
        }
    }
}

impl PartialEq for Target<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.https == other.https
            && self.port == other.port
            && self.host.eq_ignore_ascii_case(other.host)
    }
}

impl Eq for Target<'_> {}

impl Hash for Target<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.https.hash(state);
        self.port.hash(state);
        // Hashed in pieces, so that no lower-case copy is needed.
        let mut folded = [0; 32];
        for piece in self.host.as_bytes().chunks(folded.len()) {
            for (to, from) in folded.iter_mut().zip(piece) {
                *to = from.to_ascii_lowercase();
            }
            state.write(folded.get(..piece.len()).unwrap_or_default());
        }
    }
}

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.host)?;
        if self.port == default_port(self.https) {
            Ok(())
        } else {
            write!(f, ":{}", self.port)
        }
    }
}

fn default_port(https: bool) -> u16 {
    if https { 443 } else { 80 }
}

pub(crate) fn scheme_of(scheme: &str) -> Result<bool, OriginError> {
    if scheme.eq_ignore_ascii_case("https") {
        Ok(true)
    } else if scheme.eq_ignore_ascii_case("http") {
        Ok(false)
    } else {
        Err(OriginError::Scheme)
    }
}

/// The port of an authority that has only a host and a port. A user name, or a colon without a
/// number, is ambiguous.
fn port_of(authority: &Authority) -> Result<Option<u16>, OriginError> {
    let text = authority.as_str();
    if text.contains('@') {
        return Err(OriginError::UserInfo);
    }
    let Some(rest) = text.strip_prefix(authority.host()) else {
        return Err(OriginError::Host);
    };
    read_port(rest.as_bytes())
}

/// The port after a host: nothing, or a colon and a number.
fn read_port(rest: &[u8]) -> Result<Option<u16>, OriginError> {
    match rest.strip_prefix(b":") {
        None if rest.is_empty() => Ok(None),
        Some(port) if port.iter().all(u8::is_ascii_digit) => str::from_utf8(port)
            .ok()
            .and_then(|port| port.parse().ok())
            .map(Some)
            .ok_or(OriginError::Port),
        _ => Err(OriginError::Port),
    }
}

/// Whether this is a host name or an address in its usual form, which every program reads as the
/// same host.
fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[') {
        return address
            .strip_suffix(']')
            .is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok());
    }
    let name = match host.strip_suffix('.') {
        // Some programs drop the dot of an address.
        Some(name) if ends_an_address(name) => return false,
        Some(name) => name,
        None => host,
    };
    // A percent sign is decoded by some programs and not by others.
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    name.len() <= 253
        && name
            .split('.')
            .all(|label| !label.is_empty() && label.bytes().all(legal))
}

/// Whether all or some programs read a host with this end as an address: in brackets, or with a
/// number as its last label.
pub(crate) fn ends_an_address(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    host.starts_with('[')
        || match hex {
            Some(hex) => hex.bytes().all(|b| b.is_ascii_hexdigit()),
            None => last.bytes().all(|b| b.is_ascii_digit()),
        }
}

#[cfg(test)]
mod tests;
