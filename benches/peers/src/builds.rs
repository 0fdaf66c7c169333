//! The cost of building a user's program with each crate: crates, seconds and binary size.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::measure::Effort;
use crate::names::{OURS, Who};
use crate::table::{Cell, Table};

struct Program {
    who: Who,
    dependencies: String,
    main: &'static str,
}

fn programs() -> Vec<Program> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let ours = ours.canonicalize().unwrap();
    let program = |who, dependencies: &str, main| Program {
        who,
        dependencies: dependencies.replace("OURS", &ours.display().to_string()),
        main,
    };
    vec![
        program(Who::limit("tokio, tower and http alone"), "", ALONE),
        program(
            OURS.with(", default features: source, both layers")
                .job("source"),
            r#"tower-spiffe = { path = "OURS" }"#,
            OURS_ALL,
        ),
        program(
            OURS.with(", server with a fixed bundle alone")
                .job("server"),
            r#"tower-spiffe = { path = "OURS", default-features = false, features = ["server"] }"#,
            OURS_SERVER,
        ),
        program(
            Who::peer("spiffe 0.19 with its JWT features: source, verification").job("source"),
            r#"spiffe = { version = "=0.19.0", features = ["jwt-source", "jwt-verify-aws-lc-rs"] }"#,
            SPIFFE,
        ),
        program(
            Who::peer("tower-http 0.7 + jsonwebtoken 12.0 [^by-hand]").job("server"),
            r#"tower-http = { version = "=0.7.1", features = ["auth"] }
serde = { version = "1", features = ["derive"] }
serde_json = "1"
jsonwebtoken = { version = "=12.0.0", default-features = false, features = ["aws_lc_rs"] }"#,
            BY_HAND,
        ),
        program(
            Who::peer("jwt-authorizer 0.15, no TLS [^jwt-authorizer]").job("server"),
            r#"jwt-authorizer = { version = "=0.15.0", default-features = false }"#,
            JWT_AUTHORIZER,
        ),
        program(
            Who::peer("tower-oauth2-resource-server 0.12, no TLS [^oauth2]").job("server"),
            r#"tower-oauth2-resource-server = { version = "=0.12.5", default-features = false, features = ["jwt-aws-lc-rs"] }"#,
            OAUTH2,
        ),
    ]
}

pub fn run(effort: Effort) -> Table {
    let folder = std::env::temp_dir().join(format!("peers-builds-{}", std::process::id()));
    let mut table = Table::new(
        "builds",
        "A clean release build of a user's program",
        &["crates", "to spiffe's", "build", "binary, stripped"],
    )
    .note(
        "*crates* counts normal and build dependencies, each version once. The sources were downloaded \
         in advance. If a program uses aws-lc, its C code takes most of the build time. Each program \
         was built once, so the seconds vary by 10 % and more between runs.",
    );
    let programs = programs();
    let built = programs
        .iter()
        .enumerate()
        .map(|(at, program)| build(&folder.join(at.to_string()), program, effort.quick));
    let built: Vec<_> = built.collect();
    let spiffe = programs.iter().position(|program| program.main == SPIFFE);
    let spiffe =
        built[spiffe.expect("the list contains spiffe")][0].map_or(f64::NAN, |cell| cell.value);
    for (program, built) in programs.into_iter().zip(built) {
        let [crates, time, size] = built;
        let ratio = crates.and_then(|cell| Cell::ratio(cell.value / spiffe));
        table.row(program.who, vec![crates, ratio, time, size]);
    }
    let _ = std::fs::remove_dir_all(&folder);
    table
}

fn build(folder: &PathBuf, program: &Program, quick: bool) -> [Option<Cell>; 3] {
    std::fs::create_dir_all(folder.join("src")).unwrap();
    let manifest = format!(
        "[package]\nname = \"user\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
         [dependencies]\nhttp = \"1\"\n\
         tokio = {{ version = \"1\", features = [\"rt\", \"net\", \"time\"] }}\n\
         tower = {{ version = \"0.5\", features = [\"util\"] }}\n{}\n\n\
         [profile.release]\nstrip = true\n",
        program.dependencies
    );
    std::fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    std::fs::write(folder.join("src/main.rs"), program.main).unwrap();
    // Uses the same versions as this crate.
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock");
    std::fs::copy(lock, folder.join("Cargo.lock")).unwrap();

    let cargo = |arguments: &[&str]| {
        let output = Command::new("cargo")
            .args(arguments)
            .current_dir(folder)
            .env("CARGO_TARGET_DIR", folder.join("target"))
            .env("CARGO_INCREMENTAL", "0")
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {error}", program.who.name);
        String::from_utf8(output.stdout).unwrap()
    };
    let tree = cargo(&[
        "tree",
        "--edges",
        "normal,build",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    // cargo marks repeated crates with (*).
    let lines = tree.lines().map(|line| line.trim_end_matches(" (*)"));
    let mut crates: Vec<&str> = lines.filter(|line| !line.starts_with("user ")).collect();
    crates.sort_unstable();
    crates.dedup();
    let crates = Cell::count(crates.len() as f64);
    if quick {
        return [crates, None, None];
    }
    let start = Instant::now();
    cargo(&["build", "--release"]);
    let time = start.elapsed();
    let size = std::fs::metadata(folder.join("target/release/user"))
        .unwrap()
        .len();
    let _ = std::fs::remove_dir_all(folder.join("target"));
    [
        crates,
        Cell::nanos(time.as_nanos() as f64),
        Cell::bytes(size as f64),
    ]
}

const ALONE: &str = r#"
use http::{Request, Response};
use tower::ServiceExt;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let service = tower::service_fn(|_: Request<String>| async {
            Ok::<_, std::convert::Infallible>(Response::new(String::new()))
        });
        let response = service.oneshot(Request::new(String::new())).await.unwrap();
        println!("{}", response.status());
    });
}
"#;

const OURS_ALL: &str = r#"
use http::{Request, Response};
use tower::{Layer, ServiceExt};
use tower_spiffe::client::{AddJwtSvidLayer, Audience};
use tower_spiffe::server::{Allow, ValidateJwtSvidLayer};
use tower_spiffe::{JwtSource, Validator};

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let source = JwtSource::new().await.unwrap();
        let validator = Validator::builder(source.clone()).audience("a").build().unwrap();
        let server = ValidateJwtSvidLayer::required(validator, Allow::trust_domain("x").unwrap());
        let audience = Audience::fixed("a").for_origin("https://a").unwrap();
        let client = AddJwtSvidLayer::new(source, audience);
        let service = tower::service_fn(|_: Request<String>| async {
            Ok::<_, std::convert::Infallible>(Response::new(String::new()))
        });
        let service = client.layer(server.layer(service));
        let response = service.oneshot(Request::new(String::new())).await;
        println!("{:?}", response.map(|response| response.status()));
    });
}
"#;

const OURS_SERVER: &str = r#"
use http::{Request, Response};
use tower::{Layer, ServiceExt};
use tower_spiffe::server::{Allow, ValidateJwtSvidLayer};
use tower_spiffe::Validator;
use tower_spiffe::bundle::{FixedBundles, JwtBundle, JwtBundleSet};

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let jwks = std::env::args().nth(1).unwrap();
        let bundle = JwtBundle::from_jwks("x".parse().unwrap(), jwks.as_bytes()).unwrap();
        let bundles = FixedBundles::new(JwtBundleSet::from_iter([bundle]));
        let validator = Validator::builder(bundles).audience("a").build().unwrap();
        let server = ValidateJwtSvidLayer::required(validator, Allow::trust_domain("x").unwrap());
        let service = tower::service_fn(|_: Request<String>| async {
            Ok::<_, std::convert::Infallible>(Response::new(String::new()))
        });
        let response = server.layer(service).oneshot(Request::new(String::new())).await.unwrap();
        println!("{}", response.status());
    });
}
"#;

const SPIFFE: &str = r#"
use http::{Request, Response};
use tower::ServiceExt;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let source = spiffe::JwtSource::new().await.unwrap();
        let own = source.fetch_jwt_svid(["a"]).await.unwrap();
        let service = tower::service_fn(|request: Request<String>| {
            let svid = spiffe::JwtSvid::parse_and_validate(request.body(), &source, &["a"]);
            async move {
                Ok::<_, std::convert::Infallible>(Response::new(format!("{:?}", svid.is_ok())))
            }
        });
        let response = service.oneshot(Request::new(own.token().to_owned())).await.unwrap();
        println!("{}", response.status());
    });
}
"#;

const BY_HAND: &str = r#"
use http::{Request, Response};
use tower::{Layer, ServiceExt};
use tower_http::validate_request::ValidateRequestHeaderLayer;

#[derive(serde::Deserialize, Clone)]
struct Claims {
    sub: String,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let jwk = serde_json::from_str(&std::env::args().nth(1).unwrap()).unwrap();
        let key = jsonwebtoken::DecodingKey::from_jwk(&jwk).unwrap();
        let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
        validation.set_audience(&["a"]);
        let layer = ValidateRequestHeaderLayer::custom(move |request: &mut Request<String>| {
            let token = request.headers()["authorization"].to_str().unwrap();
            match jsonwebtoken::decode::<Claims>(token, &key, &validation) {
                Ok(data) => {
                    println!("{}", data.claims.sub);
                    request.extensions_mut().insert(data.claims);
                    Ok(())
                }
                Err(_) => Err(Response::new(String::new())),
            }
        });
        let service = tower::service_fn(|_: Request<String>| async {
            Ok::<_, std::convert::Infallible>(Response::new(String::new()))
        });
        let response = layer.layer(service).oneshot(Request::new(String::new())).await.unwrap();
        println!("{}", response.status());
    });
}
"#;

const JWT_AUTHORIZER: &str = r#"
use jwt_authorizer::{AuthorizerBuilder, RegisteredClaims};

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let jwks = std::env::args().nth(1).unwrap();
        let authorizer = AuthorizerBuilder::<RegisteredClaims>::from_jwks_text(&jwks);
        let authorizer = authorizer.build().await.unwrap();
        println!("{}", authorizer.check_auth(&jwks).await.is_ok());
    });
}
"#;

const OAUTH2: &str = r#"
use http::{Request, Response};
use tower::{Layer, ServiceExt};
use tower_oauth2_resource_server::server::OAuth2ResourceServer;
use tower_oauth2_resource_server::tenant::TenantConfiguration;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let jwks = std::env::args().nth(1).unwrap();
        let tenant = TenantConfiguration::static_builder(jwks).audiences(&["a"]).build().unwrap();
        let server = <OAuth2ResourceServer>::builder().add_tenant(tenant).build().await.unwrap();
        let service = tower::service_fn(|_: Request<String>| async {
            Ok::<_, std::convert::Infallible>(Response::new(String::new()))
        });
        let layer = server.into_layer::<String>();
        let response = layer.layer(service).oneshot(Request::new(String::new())).await.unwrap();
        println!("{}", response.status());
    });
}
"#;
