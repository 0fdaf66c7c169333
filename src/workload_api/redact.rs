//! `Debug` of messages with a token: the generated implementation would show it.

use super::pb::{Jwtsvid, ValidateJwtsvidRequest};
use crate::presentable::debug_fields;

debug_fields!(Jwtsvid, |it| { spiffe_id: it.spiffe_id, hint: it.hint });
debug_fields!(ValidateJwtsvidRequest, |it| { audience: it.audience });

#[cfg(test)]
mod tests {
    use super::super::pb::JwtsvidResponse;
    use super::*;

    #[test]
    fn debug_of_messages_hides_tokens() {
        let svid = "eyJhbGciOiJFUzI1NiJ9.e30.c2ln".to_owned();
        let answer = JwtsvidResponse {
            svids: vec![Jwtsvid {
                spiffe_id: "spiffe://x/web".to_owned(),
                svid: svid.clone(),
                hint: "external".to_owned(),
            }],
        };
        let question = ValidateJwtsvidRequest {
            audience: "a".to_owned(),
            svid: svid.clone(),
        };
        let shown = format!("{answer:?} {question:?}");
        assert!(!shown.contains(&svid), "{shown}");
        assert!(shown.contains("spiffe://x/web"), "{shown}");
    }
}
