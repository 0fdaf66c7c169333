//! Where another one is ahead of tower-spiffe, found by the figures, and why, known by looking.

use serde::Serialize;

use crate::names::Role;
use crate::report::Report;
use crate::table::{Better, Cell, Row, Table};

/// A figure of a peer that is better than ours, beyond what rounds differ by.
#[derive(Clone, Serialize)]
pub struct Ahead {
    pub table: String,
    pub column: String,
    pub peer: String,
    pub ours: String,
    theirs: Cell,
    ours_is: Cell,
}

/// Why peers are ahead in these tables; in all of their columns where none is named, and all of
/// the peers whose name has this in it.
struct Reason {
    tables: &'static [&'static str],
    columns: &'static [&'static str],
    peer: &'static str,
    why: &'static str,
}

/// The first that applies counts.
const REASONS: &[Reason] = &[
    Reason {
        tables: &["refusals"],
        columns: &["no token at all", "`alg: none`"],
        peer: "",
        why: "What is no token at all is told by its missing dots, before a clock is read or \
              anything allocated. But first the source is asked whether it can judge at all (else \
              the answer is 503, not 401), and the whole text is hashed and asked for in the cache, \
              since most of what comes is a regular caller's token. The row *without its cache* \
              shows what that costs: tens of nanoseconds, for which a hit saves a whole signature \
              check.",
    },
    Reason {
        tables: &["refusals", "refusals-allocations", "refusals-bytes"],
        columns: &["unknown key"],
        peer: "jwt-authorizer",
        why: "It has one key set for all issuers and needs the header alone to look for the key. A \
              JWT-SVID's key belongs to the trust domain in `sub`: the claims must be read first, \
              and they are judged (time, audience) before any key is looked for. `spiffe`, which \
              must do the same, takes longer than we do.",
    },
    Reason {
        tables: &[
            "layer-refusals",
            "layer-refusals-allocations",
            "layer-refusals-bytes",
        ],
        columns: &[],
        peer: "",
        why: "Our rejection contains more: the challenge that RFC 9110 section 15.5.2 requires of \
              each 401 (by hand, and with axum-jwt-auth and agntcy-slim-auth, there is none, and \
              jwt-authorizer's has no error description), the reason in the response's extensions \
              for outer layers, and a log that writes one line per class and interval. *no header* \
              shows what that costs if there is no token: five allocations, two of http's header \
              map with its first header and three of http's extensions with their first entry. The \
              challenge itself is made in advance. A token adds its own cost, see the refusals \
              above. All of it is small against the signature check that others pay before they \
              find that a token is expired or for another audience.",
    },
    Reason {
        tables: &["start"],
        columns: &[],
        peer: "spiffe",
        why: "We parse each key when it arrives, with the check that the point is on its curve, so \
              that an unfit key is known then and a verification never parses one. The difference \
              with 2000 trust domains divided by their 4000 keys is that parse: well below a \
              microsecond each, as are the 15,000 instructions that aws-lc takes for a point of \
              P-256. `spiffe` pays several at each \
              verification: see what it takes above the bare check.",
    },
    Reason {
        tables: &["memory", "memory-own"],
        columns: &[],
        peer: "spiffe",
        why: "*ready*: parsed keys stand in memory beside what they were read from. The difference \
              with 2000 trust domains, in heap and stacks, divided by their 4000 keys is half a KiB \
              for each. *served*: the tokens that were verified are kept. The difference with one \
              trust domain divided by the 1000 tokens is less than 1 KiB for each, and there are at \
              most 8 MiB of them; `cache_bytes` sets another bound and `no_cache` keeps none. It is \
              what the hits are paid with. With 2000 trust domains `spiffe`, which parses keys at \
              each verification, has caught up by then.",
    },
    Reason {
        tables: &["own-token"],
        columns: &[],
        peer: "spiffe",
        why: "Ours counts the call and puts the wanted audiences into the form that the cache goes \
              by first. The few allocations more are that; the time of a call to the agent is the \
              agent's and the socket's. Who wants it fast takes `get_jwt_svid`, from the cache.",
    },
    Reason {
        tables: &["builds"],
        columns: &["crates", "to spiffe's"],
        peer: "jsonwebtoken",
        why: "arc-swap (snapshots that are swapped without a lock), quick_cache with hashbrown, \
              foldhash and equivalent (the verified cache), tracing: what jsonwebtoken by hand has \
              nothing of.",
    },
    Reason {
        tables: &["builds"],
        columns: &["build", "binary, stripped"],
        peer: "",
        why: "A build's seconds are one measurement and nearly all of them aws-lc's C code, which \
              jwt-authorizer does without (it stands on ring). The binary has the Workload API, \
              both layers, the caches and log lines in it, where it is larger.",
    },
    Reason {
        tables: &["cold", "cold-above"],
        columns: &["ES384"],
        peer: "jwt-authorizer",
        why: "Its check is ring's, not aws-lc's.",
    },
    Reason {
        tables: &["cold", "cold-above", "cold-allocations", "cold-bytes"],
        columns: &[],
        peer: "axum-jwt-auth",
        why: "Its check is RustCrypto's, not aws-lc's.",
    },
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

/// Beyond the spread: the better one's worse quarter is better than the other's better quarter.
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
            "{}: {} against {}",
            self.column,
            self.theirs.text(),
            self.ours_is.text()
        )
    }
}

/// Each reason with what it explains. What nobody has explained yet is shown as such.
pub fn markdown(report: &Report, all: &[Ahead]) -> String {
    if all.is_empty() {
        return "In no figure of this run is another one ahead.\n".to_owned();
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
                "- *{title}*: {} ahead of {}. {}.\n",
                plain(&row.peer),
                plain(&row.ours),
                figures.join("; ")
            ));
        }
        text.push_str(&format!(
            "\n{}\n\n",
            why.unwrap_or("**Not explained yet.**")
        ));
    }
    text
}

/// A table's title as it can be read alone: some say "The same" of the one before.
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

/// A row's name without its footnote.
fn plain(name: &str) -> String {
    let end = name.find(" [^").unwrap_or(name.len());
    let (name, rest) = name.split_at(end);
    let rest = rest.split_once(']').map_or("", |(_, rest)| rest);
    format!("{name}{rest}").replace("**", "")
}
