//! The URLs that bundles are fetched from: https only.

use http::Uri;

/// An absolute https URL with a host, without user information.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url(Uri);

impl Url {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let uri: Uri = text.parse().map_err(|_| "it is not an absolute URL")?;
        match uri.scheme_str() {
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => {}
            Some(_) => return Err("its scheme is not https"),
            None => return Err("it is not an absolute URL"),
        }
        let authority = uri.authority().ok_or("it has no host")?;
        if authority.as_str().contains('@') {
            return Err("it has user information before the host");
        }
        if authority.host().is_empty() || authority.host() == "[]" {
            return Err("it has no host");
        }
        let has_port = authority.as_str() != authority.host();
        if has_port && authority.port_u16().is_none_or(|port| port == 0) {
            return Err("its port is invalid");
        }
        Ok(Self(uri))
    }

    /// The URL that a `Location` header names, seen from this one (RFC 3986 section 5.2).
    pub(super) fn join(&self, location: &str) -> Result<Self, &'static str> {
        let location = location.split('#').next().unwrap_or_default();
        if has_scheme(location) {
            return Self::parse(location);
        }
        if location.starts_with("//") {
            return Self::parse(&format!("https:{location}"));
        }
        let (path, query) = location.split_at(location.find('?').unwrap_or(location.len()));
        let base = self.0.path();
        let path = if path.is_empty() {
            base.to_owned()
        } else if path.starts_with('/') {
            without_dots(path)
        } else {
            let dir = base.rfind('/').and_then(|end| base.get(..=end));
            without_dots(&format!("{}{path}", dir.unwrap_or("/")))
        };
        Self::parse(&format!("https://{}{path}{query}", self.authority()))
    }

    pub(super) fn uri(&self) -> &Uri {
        &self.0
    }

    pub(super) fn authority(&self) -> &str {
        self.0
            .authority()
            .map_or("", |authority| authority.as_str())
    }

    /// The host as certificates name it: an IPv6 address without brackets.
    pub(super) fn host(&self) -> &str {
        let host = self.0.host().unwrap_or_default();
        let inside = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
        inside.unwrap_or(host)
    }

    pub(super) fn port(&self) -> u16 {
        self.0.port_u16().unwrap_or(443)
    }

    /// The host in lower case, and the port.
    pub(super) fn origin(&self) -> (String, u16) {
        (self.host().to_ascii_lowercase(), self.port())
    }

    /// The path and the query, as a request line has them.
    pub(super) fn request_target(&self) -> Uri {
        self.0
            .path_and_query()
            .cloned()
            .map_or_else(Uri::default, Uri::from)
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

fn has_scheme(location: &str) -> bool {
    let scheme = location
        .split_once(':')
        .map(|(scheme, _)| scheme.as_bytes());
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    scheme.is_some_and(|scheme| {
        scheme.first().is_some_and(u8::is_ascii_alphabetic) && scheme.iter().all(is_letter)
    })
}

/// RFC 3986 section 5.2.4, for a path that begins with a slash.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut is_dir = false;
    for segment in path.split('/').skip(1) {
        is_dir = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            _ => kept.push(segment),
        }
    }
    let slash = if is_dir && !kept.is_empty() { "/" } else { "" };
    format!("/{}{slash}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h05_only_https_urls_are_taken() {
        for good in [
            "https://example.org",
            "HTTPS://example.org/keys",
            "https://[::1]:8443/?a=b",
            "https://10.0.0.1/keys",
        ] {
            assert!(Url::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "http://example.org/keys",
            "example.org/keys",
            "/keys",
            "file:///etc/passwd",
            "ftp://example.org/keys",
            "https://user@example.org/keys",
            "https://user:word@example.org/keys",
            "https:///keys",
            "https://example.org:0/keys",
            "https://example.org:/keys",
            "https://example.org:65536/keys",
            "https://exa mple.org/",
        ] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(
            Url::parse("https://[::1]:8443/").map(|url| url.host().to_owned()),
            Ok("::1".into())
        );
    }

    #[test]
    fn h05_request_target_begins_with_a_slash() {
        for (url, target) in [
            ("https://example.org", "/"),
            ("https://example.org?a=b", "/?a=b"),
            ("https://example.org/keys?a=b", "/keys?a=b"),
        ] {
            let found = Url::parse(url).map(|url| url.request_target().to_string());
            assert_eq!(found, Ok(target.to_owned()), "{url}");
        }
    }

    #[test]
    fn h05_location_is_resolved_and_stays_https() {
        let base = Url::parse("https://example.org:8443/a/b?c=d").unwrap();
        for (location, found) in [
            ("https://other.test/keys", "https://other.test/keys"),
            ("//other.test/keys", "https://other.test/keys"),
            ("/keys?x=y#z", "https://example.org:8443/keys?x=y"),
            ("keys", "https://example.org:8443/a/keys"),
            ("../keys", "https://example.org:8443/keys"),
            ("../../../keys/./x/..", "https://example.org:8443/keys/"),
            ("?e=f", "https://example.org:8443/a/b?e=f"),
            ("k:8", ""),
            ("http://example.org:8443/keys", ""),
            ("HtTp://example.org/keys", ""),
            ("//user@other.test/keys", ""),
            ("javascript:alert(1)", ""),
        ] {
            let joined = base.join(location).map(|url| url.to_string());
            assert_eq!(joined.unwrap_or_default(), found, "{location}");
        }
    }
}
