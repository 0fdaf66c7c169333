use super::*;

fn reason(value: &str) -> EndpointErrorReason {
    value.parse::<Endpoint>().expect_err(value).reason()
}

#[cfg(unix)]
#[test]
fn ep9_unix_has_an_absolute_path() {
    for (value, path) in [
        ("unix:///p", "/p"),
        ("unix:/p", "/p"),
        ("UNIX:///p", "/p"),
        ("unix:///run/spire%20x/a.sock", "/run/spire x/a.sock"),
        ("unix:////p", "//p"),
    ] {
        let endpoint: Endpoint = value.parse().expect(value);
        assert_eq!(endpoint.unix_path(), Some(Path::new(path)), "{value}");
        assert_eq!(endpoint.tcp_address(), None);
    }
}

#[cfg(not(unix))]
#[test]
fn ep9_unix_is_an_error_without_unix_sockets() {
    assert_eq!(reason("unix:///p"), EndpointErrorReason::NoUnixSockets);
}

#[test]
fn ep9_nothing_else_after_unix() {
    use EndpointErrorReason as R;
    for (value, expected) in [
        ("unix:", R::RelativePath),
        ("unix:opaque", R::RelativePath),
        ("unix://", R::NoPath),
        ("unix:///", R::NoPath),
        ("unix:/", R::NoPath),
        ("unix:///a/", R::NoPath),
        ("unix:///a%2f", R::NoPath),
        ("unix:/%2F", R::NoPath),
        ("unix://foo", R::UnixAuthority),
        ("unix://localhost/foo", R::UnixAuthority),
        ("unix://john:doe@foo/path", R::UnixAuthority),
        ("unix:///foo?x", R::QueryOrFragment),
        ("unix:///foo#x", R::QueryOrFragment),
        ("unix:///foo bar", R::Character),
        ("unix:///foo\n", R::Character),
        ("unix:///fo\u{f6}", R::Character),
        ("unix:///foo%", R::Character),
        ("unix:///foo%2", R::Character),
        ("unix:///foo%zz", R::Character),
        ("unix:///foo%00", R::Character),
        ("unix:///foo%ff", R::Character),
    ] {
        assert_eq!(reason(value), expected, "{value}");
    }
    let long = format!("unix:///{}", "x".repeat(200));
    assert_eq!(reason(&long), R::PathTooLong);
}

#[test]
fn ep10_tcp_has_ip_address_and_port() {
    for (value, address) in [
        ("tcp://127.0.0.1:8000", "127.0.0.1:8000"),
        ("tcp://1.2.3.4:5", "1.2.3.4:5"),
        ("TCP://[::1]:65535", "[::1]:65535"),
    ] {
        let endpoint: Endpoint = value.parse().expect(value);
        assert_eq!(endpoint.tcp_address(), address.parse().ok(), "{value}");
        assert_eq!(endpoint.unix_path(), None);
        assert_eq!(endpoint.to_string(), format!("tcp://{address}"));
    }
}

#[test]
fn ep10_nothing_else_after_tcp() {
    use EndpointErrorReason as R;
    for (value, expected) in [
        ("tcp:opaque", R::TcpForm),
        ("tcp://", R::TcpForm),
        ("tcp:///foo", R::TcpPath),
        ("tcp://:80", R::TcpForm),
        ("tcp://foo", R::HostName),
        ("tcp://foo:80", R::HostName),
        ("tcp://localhost:80", R::HostName),
        ("tcp://1.2.3.4", R::Port),
        ("tcp://1.2.3.4:", R::Port),
        ("tcp://1.2.3.4:0", R::Port),
        ("tcp://1.2.3.4:+1", R::Port),
        ("tcp://1.2.3.4:65536", R::Port),
        ("tcp://1.2.3.4:5/", R::TcpPath),
        ("tcp://1.2.3.4:5/path", R::TcpPath),
        ("tcp://1.2.3.4:5?x", R::QueryOrFragment),
        ("tcp://1.2.3.4:5#x", R::QueryOrFragment),
        ("tcp://john:doe@1.2.3.4:5", R::UserInfo),
        ("tcp://[::1]", R::Port),
        ("tcp://::1:80", R::HostName),
        ("tcp://[::1%25lo]:80", R::HostName),
        ("tcp://01.2.3.4:5", R::HostName),
        ("tcp://1.2.3:5", R::HostName),
    ] {
        assert_eq!(reason(value), expected, "{value}");
    }
}

#[test]
fn ep8_scheme_is_unix_or_tcp() {
    use EndpointErrorReason as R;
    for (value, expected) in [
        ("", R::Empty),
        ("\t", R::Scheme),
        ("blah", R::Scheme),
        ("/run/agent.sock", R::Scheme),
        ("http://127.0.0.1:80", R::Scheme),
        (" unix:///p", R::Scheme),
        ("npipe:x", R::Scheme),
    ] {
        assert_eq!(reason(value), expected, "{value}");
    }
}

#[test]
fn ep7_errors_name_the_value_and_the_fix() {
    let unset = EndpointError::new(EndpointErrorReason::Unset, "", true).to_string();
    assert!(unset.contains("SPIFFE_ENDPOINT_SOCKET is unset"), "{unset}");
    assert!(unset.contains("unix:///path/to/socket"), "{unset}");

    let given = "unix://run/agent.sock"
        .parse::<Endpoint>()
        .expect_err("host")
        .to_string();
    assert!(given.contains("\"unix://run/agent.sock\""), "{given}");
    assert!(given.contains("three slashes"), "{given}");

    let hostile = format!("blah\u{1b}[31m{}", "x".repeat(5000));
    let shown = hostile
        .parse::<Endpoint>()
        .expect_err("hostile")
        .to_string();
    assert!(shown.len() < 400 && !shown.contains('\u{1b}'), "{shown}");
}

#[test]
#[cfg(unix)]
fn ep8_display_text_parses_again() {
    let odd: Endpoint = "unix:///run/a%20b%3Fc%0Ad.sock".parse().expect("a path");
    assert_eq!(odd.to_string(), "unix:///run/a%20b%3Fc%0Ad.sock");
    assert_eq!(odd.to_string().parse(), Ok(odd));
}
