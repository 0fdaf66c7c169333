//! The protocol of rejections.

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Version};

/// The protocol of rejections. The server declares it, because a gRPC rejection has HTTP status
/// 200: callers must not be able to make their rejections look like successes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Protocol {
    /// Follows the request: gRPC for a POST over HTTP/2 with content type `application/grpc`,
    /// gRPC-Web for a POST with content type `application/grpc-web`, otherwise HTTP.
    ///
    /// For a port that serves both gRPC and HTTP. The caller chooses: a rejection on an HTTP route
    /// has status 200 if the request claims to be gRPC. If that matters, put a layer with its own
    /// protocol around each part.
    Auto,
    /// HTTP status codes, for every content type of the request.
    #[default]
    Http,
    /// gRPC status codes; gRPC-Web if the content type of the request is gRPC-Web.
    Grpc,
}

/// The form of a rejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Wire {
    Http,
    Grpc,
    GrpcWeb { text: bool, codec: Codec },
}

/// The message format that a gRPC-Web client named. The response uses the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Codec {
    Unnamed,
    Proto,
    Json,
}

impl Protocol {
    /// The form for this request.
    pub(crate) fn wire(self, parts: &Parts) -> Wire {
        match self {
            Self::Http => Wire::Http,
            Self::Grpc => Wire::of_content_type(&parts.headers).unwrap_or(Wire::Grpc),
            Self::Auto => Wire::of_request(&parts.method, parts.version, &parts.headers),
        }
    }
}

impl Wire {
    /// The protocol by the request's own headers.
    pub(crate) fn of_request(method: &Method, version: Version, headers: &HeaderMap) -> Self {
        if method != Method::POST {
            return Self::Http;
        }
        match Self::of_content_type(headers) {
            Some(Self::Grpc) if version < Version::HTTP_2 => Self::Http,
            Some(wire) => wire,
            None => Self::Http,
        }
    }

    /// gRPC or gRPC-Web, by the content type alone.
    pub(crate) fn of_content_type(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(CONTENT_TYPE)?.as_bytes();
        let rest = strip_prefix(value, b"application/grpc")?;
        let (wire, rest) = match strip_prefix(rest, b"-web") {
            None => (Self::Grpc, rest),
            Some(rest) => {
                let (text, rest) = match strip_prefix(rest, b"-text") {
                    Some(rest) => (true, rest),
                    None => (false, rest),
                };
                let codec = Codec::of(rest);
                (Self::GrpcWeb { text, codec }, rest)
            }
        };
        matches!(rest.first(), None | Some(b';' | b'+')).then_some(wire)
    }

    /// The content type of a response in this form; `None` for plain HTTP.
    pub(crate) fn content_type(self) -> Option<HeaderValue> {
        let (text, codec) = match self {
            Self::Http => return None,
            Self::Grpc => return Some(HeaderValue::from_static("application/grpc")),
            Self::GrpcWeb { text, codec } => (text, codec),
        };
        Some(HeaderValue::from_static(match (text, codec) {
            (false, Codec::Unnamed) => "application/grpc-web",
            (false, Codec::Proto) => "application/grpc-web+proto",
            (false, Codec::Json) => "application/grpc-web+json",
            (true, Codec::Unnamed) => "application/grpc-web-text",
            (true, Codec::Proto) => "application/grpc-web-text+proto",
            (true, Codec::Json) => "application/grpc-web-text+json",
        }))
    }
}

impl Codec {
    fn of(suffix: &[u8]) -> Self {
        let end = suffix.iter().position(|b| *b == b';' || *b == b' ');
        let name = end.and_then(|end| suffix.get(..end)).unwrap_or(suffix);
        if name.eq_ignore_ascii_case(b"+proto") {
            Self::Proto
        } else if name.eq_ignore_ascii_case(b"+json") {
            Self::Json
        } else {
            Self::Unnamed
        }
    }
}

/// Media types are compared without regard to case (RFC 9110 section 8.3.1).
fn strip_prefix<'a>(value: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = value.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: Method, version: Version, content_type: &str) -> Parts {
        let mut request = http::Request::new(());
        *request.method_mut() = method;
        *request.version_mut() = version;
        if !content_type.is_empty() {
            let value = HeaderValue::from_str(content_type).unwrap();
            request.headers_mut().insert(CONTENT_TYPE, value);
        }
        request.into_parts().0
    }

    fn auto(method: Method, version: Version, content_type: &str) -> Wire {
        Protocol::Auto.wire(&parts(method, version, content_type))
    }

    #[test]
    fn only_http2_posts_are_grpc() {
        for content_type in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc+anything",
            "application/grpc;charset=x",
            "Application/GRPC",
        ] {
            assert_eq!(
                auto(Method::POST, Version::HTTP_2, content_type),
                Wire::Grpc
            );
            assert_eq!(
                auto(Method::POST, Version::HTTP_11, content_type),
                Wire::Http
            );
            assert_eq!(auto(Method::GET, Version::HTTP_2, content_type), Wire::Http);
            assert_eq!(auto(Method::PUT, Version::HTTP_2, content_type), Wire::Http);
        }
        for content_type in [
            "",
            "application/json",
            "application/grpcx",
            "application/grpc-",
            "application/grpc-webx",
            "application/grpc-web-",
            "application/grpc-web-textual",
            "application/grpc foo",
            "text/application/grpc",
            " application/grpc",
        ] {
            assert_eq!(
                auto(Method::POST, Version::HTTP_2, content_type),
                Wire::Http
            );
        }
    }

    #[test]
    fn grpc_web_responses_match_the_request() {
        for (asked, answered) in [
            ("application/grpc-web", "application/grpc-web"),
            ("application/grpc-web+proto", "application/grpc-web+proto"),
            ("application/grpc-web+thrift", "application/grpc-web"),
            (
                "application/grpc-web+json; charset=utf-8",
                "application/grpc-web+json",
            ),
            ("application/grpc-web-text", "application/grpc-web-text"),
            (
                "application/grpc-web-text+proto",
                "application/grpc-web-text+proto",
            ),
            ("application/grpc-web-text;x=y", "application/grpc-web-text"),
        ] {
            for version in [Version::HTTP_11, Version::HTTP_2] {
                let wire = auto(Method::POST, version, asked);
                assert_eq!(wire.content_type().unwrap(), answered);
                assert_eq!(auto(Method::GET, version, asked), Wire::Http);
            }
        }
    }

    #[test]
    fn a_declared_protocol_ignores_the_request() {
        let grpc = parts(Method::POST, Version::HTTP_2, "application/grpc");
        assert_eq!(Protocol::Http.wire(&grpc), Wire::Http);
        let http = parts(Method::GET, Version::HTTP_11, "");
        assert_eq!(Protocol::Grpc.wire(&http), Wire::Grpc);
        let web = parts(Method::GET, Version::HTTP_11, "application/grpc-web+proto");
        let codec = Codec::Proto;
        assert_eq!(
            Protocol::Grpc.wire(&web),
            Wire::GrpcWeb { text: false, codec }
        );
    }
}
