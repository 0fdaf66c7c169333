//! `Debug` of messages with a token: the generated implementation would show it.

use std::fmt;

use super::pb::{Jwtsvid, ValidateJwtsvidRequest};

impl fmt::Debug for Jwtsvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwtsvid")
            .field("spiffe_id", &self.spiffe_id)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ValidateJwtsvidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidateJwtsvidRequest")
            .field("audience", &self.audience)
            .finish_non_exhaustive()
    }
}

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
