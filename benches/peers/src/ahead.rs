//! Figures of other crates that are better than ours, found automatically, and their explanations.

use serde::Serialize;

use crate::names::Role;
use crate::report::Report;
use crate::table::{Better, Cell, Row, Table};

/// A figure of a peer that is better than ours by more than the spread of the rounds.
#[derive(Clone, Serialize)]
pub struct Ahead {
    pub table: String,
    pub column: String,
    pub peer: String,
    pub ours: String,
    theirs: Cell,
    ours_is: Cell,
}

/// Why the peers whose name contains `peer` have better figures in these tables. Applies to all
/// columns if `columns` is empty.
struct Reason {
    tables: &'static [&'static str],
    columns: &'static [&'static str],
    peer: &'static str,
    why: &'static str,
}

/// The first entry that applies is used.
const REASONS: &[Reason] = &[
    Reason {
        tables: &["rejections"],
        columns: &["no token at all", "`alg: none`"],
        peer: "",
        why: "tower-spiffe finds the missing dots before it reads a clock or allocates. Two steps \
              come first. It asks the source whether it can verify at all; if not, the response is \
              503, not 401. It hashes the whole text and looks it up in the cache, because most \
              requests carry a known token. The row *without its cache* shows that the lookup \
              costs tens of nanoseconds. A hit saves a complete signature check.",
    },
    Reason {
        tables: &["rejections", "rejections-allocations", "rejections-bytes"],
        columns: &["unknown key"],
        peer: "jwt-authorizer",
        why: "jwt-authorizer has one key set for all issuers, so it needs only the header to look \
              up the key. The key of a JWT-SVID belongs to the trust domain in `sub`. tower-spiffe \
              therefore reads the claims first, and it validates them (times, audience) before it \
              looks up the key. `spiffe` must do the same and takes longer.",
    },
    Reason {
        tables: LAYER_REJECTIONS,
        columns: &[],
        peer: "`custom`",
        why: "These layers are closures that return an empty 401 without a challenge. RFC 9110 \
              section 15.5.2 requires a `WWW-Authenticate` header in every 401. tower-spiffe adds \
              the challenge, stores the rejection in the extensions of the response for outer \
              layers, and selects the HTTP or gRPC form of the response. If there is no token, \
              this takes five allocations with 412 bytes: two for http's header map and its first \
              header, three for http's extensions and their first entry. The challenge itself is \
              created in advance. A token adds the cost of reading and validating its claims; \
              see the table of rejected tokens.",
    },
    Reason {
        tables: LAYER_REJECTIONS,
        columns: &["no header"],
        peer: "jwt-authorizer",
        why: "Both responses have a challenge and both need five allocations. In bytes \
              tower-spiffe needs less (412 B); in time jwt-authorizer is faster, because it does \
              less. It returns a fixed response. tower-spiffe also asks the source whether it can \
              verify, selects the HTTP or gRPC form of the response, stores the rejection in the \
              extensions of the response for outer layers, and passes it to its log and metrics. \
              In this program no log and no metrics are installed, so they cost only their checks.",
    },
    Reason {
        tables: LAYER_REJECTIONS,
        columns: &[],
        peer: "jwt-authorizer",
        why: "jwt-authorizer looks up the key with the header alone. tower-spiffe also reads and \
              validates the claims first; see the table of rejected tokens. Both \
              responses have a challenge that names the error. tower-spiffe also stores the \
              rejection in the extensions of the response for outer layers and passes it to its \
              log and metrics.",
    },
    Reason {
        tables: LAYER_REJECTIONS,
        columns: &[],
        peer: "tower-oauth2-resource-server",
        why: "tower-oauth2-resource-server looks up the key with the header alone, and its \
              response to an invalid token has no challenge. tower-spiffe also reads and validates \
              the claims first, adds the challenge, and stores the rejection in the extensions of \
              the response for outer layers.",
    },
    Reason {
        tables: LAYER_REJECTIONS,
        columns: &[],
        peer: "axum-jwt-auth",
        why: "The 401 of axum-jwt-auth has no challenge, which RFC 9110 section 15.5.2 requires. \
              tower-spiffe adds the challenge, stores the rejection in the extensions of the \
              response for outer layers, and selects the HTTP or gRPC form of the response. That \
              takes five allocations.",
    },
    Reason {
        tables: LAYER_REJECTIONS,
        columns: &[],
        peer: "agntcy-slim-auth",
        why: "The 401 of agntcy-slim-auth has no challenge, which RFC 9110 section 15.5.2 \
              requires. tower-spiffe adds the challenge, stores the rejection in the extensions of \
              the response for outer layers, and selects the HTTP or gRPC form of the response.",
    },
    Reason {
        tables: &["start"],
        columns: &[],
        peer: "spiffe",
        why: "tower-spiffe parses every key when it arrives and checks that its point is on the \
              curve. Invalid keys are found then, and a verification never parses a key. With 2000 \
              trust domains the difference divided by their 4000 keys is the cost of parsing one \
              key: well below a microsecond, because aws-lc needs about 15,000 instructions for a \
              P-256 point. `spiffe` parses a key at each verification; see its time in addition to \
              the bare check.",
    },
    Reason {
        tables: &["memory", "memory-own"],
        columns: &[],
        peer: "spiffe",
        why: "*ready*: parsed keys are kept in addition to their JSON. With 2000 trust domains the \
              difference in anonymous memory is about half a KiB for each of their 4000 keys. \
              *served*: verified tokens are cached. With one trust domain the difference is less \
              than 1 KiB for each of the 1000 tokens, with a limit of 8 MiB. `cache_bytes` sets \
              another limit and `no_cache` disables the cache. This memory saves a signature check \
              for each known token.",
    },
    Reason {
        tables: &["own-token"],
        columns: &[],
        peer: "spiffe",
        why: "Both call the agent each time, and most of the time is spent in the socket and the \
              agent. tower-spiffe also counts the call and converts the audiences to its cache \
              key, which causes a few more allocations. Use `get_jwt_svid` to get the token from \
              the cache.",
    },
    Reason {
        tables: &["builds"],
        columns: &["crates", "to spiffe's"],
        peer: "jsonwebtoken",
        why: "tower-spiffe also depends on arc-swap (lock-free snapshots), quick_cache with \
              hashbrown, foldhash and equivalent (the verified cache), and tracing. The \
              hand-written layer has no key updates, no cache and no logs.",
    },
    Reason {
        tables: &["builds"],
        columns: &["build", "binary, stripped"],
        peer: "",
        why: "The seconds are one measurement. Most of them are aws-lc's C code, which \
              jwt-authorizer does not build (it uses ring). The larger binary contains the \
              Workload API client, both layers, the caches and the log messages, as far as the \
              features enable them.",
    },
    Reason {
        tables: &["growth-threads"],
        columns: &["ratio"],
        peer: "",
        why: "The other crates spend tens of microseconds per token on the signature check, which \
              shares no memory between threads. tower-spiffe takes about 0.1 µs for a known token, \
              so memory that both threads use can be visible in the ratio, such as the reference \
              count of one token. Its rate is far higher with one thread and with two.",
    },
    Reason {
        tables: &["cold-bytes"],
        columns: &[],
        peer: "jsonwebtoken",
        why: "Most of tower-spiffe's bytes are the entry of its cache: the token, its claims and its \
              SPIFFE ID. They are allocated once for each token. jsonwebtoken stores nothing and \
              allocates its bytes at each verification.",
    },
    Reason {
        tables: &["cold", "cold-above"],
        columns: &[],
        peer: "jwt-authorizer",
        why: "jwt-authorizer uses ring for the signature check, not aws-lc.",
    },
    Reason {
        tables: &["cold", "cold-above", "cold-allocations", "cold-bytes"],
        columns: &[],
        peer: "axum-jwt-auth",
        why: "axum-jwt-auth uses RustCrypto for the signature check, not aws-lc.",
    },
];

const LAYER_REJECTIONS: &[&str] = &[
    "layer-rejections",
    "layer-rejections-allocations",
    "layer-rejections-bytes",
];

pub fn ahead(report: &Report) -> Vec<Ahead> {
    report.tables().flat_map(in_table).collect()
}

fn in_table(table: &Table) -> Vec<Ahead> {
    let of = |role| table.rows.iter().filter(move |row| row.who.role == role);
    let mut all = Vec::new();
    for peer in of(Role::Peer) {
        for ours in of(Role::Ours).filter(|ours| ours.who.job == peer.who.job) {
            all.extend(between(table, peer, ours));
        }
    }
    all
}

fn between(table: &Table, peer: &Row, ours: &Row) -> Vec<Ahead> {
    let cells = peer.cells.iter().zip(&ours.cells).zip(&table.columns);
    let better = cells.filter_map(|((theirs, ours_is), column)| {
        let (theirs, ours_is) = ((*theirs)?, (*ours_is)?);
        is_better(theirs, ours_is, column.better).then(|| Ahead {
            table: table.id.clone(),
            column: column.name.trim_end().to_owned(),
            peer: peer.who.name.clone().into_owned(),
            ours: ours.who.name.clone().into_owned(),
            theirs,
            ours_is,
        })
    });
    better.collect()
}

/// Returns whether the quartiles do not overlap and their figure is better.
fn is_better(theirs: Cell, ours: Cell, better: Better) -> bool {
    let of = |cell: Cell| cell.quartiles.unwrap_or((cell.value, cell.value));
    match better {
        Better::Less => of(theirs).1 < of(ours).0,
        Better::More => of(theirs).0 > of(ours).1,
        Better::Neither => false,
    }
}

impl Ahead {
    fn why(&self) -> Option<&'static str> {
        let applies = |reason: &&Reason| {
            reason.tables.contains(&self.table.as_str())
                && (reason.columns.is_empty() || reason.columns.contains(&self.column.as_str()))
                && self.peer.contains(reason.peer)
        };
        REASONS.iter().find(applies).map(|reason| reason.why)
    }

    fn figures(&self) -> String {
        format!(
            "{}: {}, ours {}",
            self.column,
            self.theirs.text(),
            self.ours_is.text()
        )
    }
}

/// Lists the figures, grouped by explanation. Figures without one are marked.
pub fn markdown(report: &Report, all: &[Ahead]) -> String {
    if all.is_empty() {
        return "No figure of another crate in this run is better than ours.\n".to_owned();
    }
    let mut text = String::new();
    let mut whys: Vec<Option<&str>> = Vec::new();
    for one in all {
        if !whys.contains(&one.why()) {
            whys.push(one.why());
        }
    }
    for why in whys {
        let mut rows: Vec<(&Ahead, Vec<String>)> = Vec::new();
        for one in all.iter().filter(|one| one.why() == why) {
            let same = |(row, _): &&mut (&Ahead, Vec<String>)| {
                (&row.table, &row.peer, &row.ours) == (&one.table, &one.peer, &one.ours)
            };
            match rows.iter_mut().find(same) {
                Some((_, figures)) => figures.push(one.figures()),
                None => rows.push((one, vec![one.figures()])),
            }
        }
        for (row, figures) in rows {
            let title = title(report, &row.table);
            text.push_str(&format!(
                "- *{title}*: {} is better than {}. {}.\n",
                plain(&row.peer),
                plain(&row.ours),
                figures.join("; ")
            ));
        }
        text.push_str(&format!(
            "\n{}\n\n",
            why.unwrap_or("**No explanation yet.**")
        ));
    }
    text
}

/// Returns the full title of a table. "The same" is replaced by the title of the table before it.
fn title(report: &Report, id: &str) -> String {
    let mut whole = "";
    for table in report.tables() {
        let rest = table.title.strip_prefix("The same");
        if rest.is_none() {
            whole = &table.title;
        }
        if table.id == id {
            return format!("{whole}{}", rest.unwrap_or_default());
        }
    }
    String::new()
}

pub fn unexplained(all: &[Ahead]) -> usize {
    all.iter().filter(|one| one.why().is_none()).count()
}

/// Returns a row's name without its footnote.
fn plain(name: &str) -> String {
    let end = name.find(" [^").unwrap_or(name.len());
    let (name, rest) = name.split_at(end);
    let rest = rest.split_once(']').map_or("", |(_, rest)| rest);
    format!("{name}{rest}").replace("**", "")
}
