//! Verifies tokens with `spiffe` on RustCrypto and prints the elapsed time.
//!
//! Reads one value per line: trust domain, audience, key set, then tokens up to an empty line.
//! Prints `yes` if the first token can be verified, otherwise `no`. Each further line is a number
//! of tokens to verify. The response is the elapsed time in nanoseconds.

use std::time::Instant;

fn main() {
    let mut lines = std::io::stdin().lines().map(|line| line.unwrap());
    let mut line = || lines.next().expect("a line");
    let trust_domain = spiffe::TrustDomain::new(line()).unwrap();
    let audience = line();
    let keys = line();
    let bundle = spiffe::JwtBundle::from_jwt_authorities(trust_domain, keys.as_bytes()).unwrap();
    let mut bundles = spiffe::JwtBundleSet::new();
    bundles.add_bundle(bundle);
    let mut tokens = Vec::new();
    loop {
        let token = line();
        if token.is_empty() {
            break;
        }
        tokens.push(token);
    }
    let verify = |token: &str| spiffe::JwtSvid::parse_and_validate(token, &bundles, &[&audience]);
    println!(
        "{}",
        if verify(&tokens[0]).is_ok() {
            "yes"
        } else {
            "no"
        }
    );
    for line in lines {
        let count = line.parse().unwrap();
        let start = Instant::now();
        for token in &tokens[..count] {
            std::hint::black_box(verify(token).unwrap());
        }
        println!("{}", start.elapsed().as_nanos());
    }
}
