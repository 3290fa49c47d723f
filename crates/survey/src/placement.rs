//! Where voters may stand.

use std::collections::BTreeMap;

use crate::domain::Domain;

/// A domain that would hold a majority of the voters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The domain.
    pub domain: Domain,
    /// Voters in it.
    pub nodes: Vec<u64>,
    /// All voters.
    pub voters: usize,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes = self.nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        write!(f, "{} would hold {} of {} voters (nodes {nodes})", self.domain, self.nodes.len(), self.voters)?;
        match self.domain.value {
            Some(_) => f.write_str("; without it no write could be acknowledged"),
            None => write!(f, "; nodes without a label {:?} count as sharing one", self.domain.key),
        }
    }
}

/// Domains of these keys that hold a majority of the voters, given with their labels. One voter cannot be spread.
pub fn placement<'a>(
    keys: impl IntoIterator<Item = &'a str>,
    voters: &BTreeMap<u64, BTreeMap<String, String>>,
) -> Vec<Violation> {
    let mut violations = Vec::new();
    if voters.len() < 2 {
        return violations;
    }
    for key in keys {
        let mut domains: BTreeMap<Domain, Vec<u64>> = BTreeMap::new();
        for (id, labels) in voters {
            domains.entry(Domain::of(key, labels)).or_default().push(*id);
        }
        let crowded = domains.into_iter().filter(|(_, nodes)| nodes.len() * 2 > voters.len());
        violations.extend(crowded.map(|(domain, nodes)| Violation { domain, nodes, voters: voters.len() }));
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voters(arrays: &[Option<&str>]) -> BTreeMap<u64, BTreeMap<String, String>> {
        let labels = |array: &Option<&str>| array.iter().map(|value| ("array".into(), (*value).into())).collect();
        (1..).zip(arrays.iter().map(labels)).collect()
    }

    #[test]
    fn a_domain_with_a_majority_of_the_voters_is_named_with_its_nodes() {
        let all = |arrays: &[Option<&str>]| {
            placement(["array"], &voters(arrays)).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            all(&[Some("a"), Some("a"), Some("b")]),
            ["array=a would hold 2 of 3 voters (nodes 1, 2); without it no write could be acknowledged"]
        );
        assert_eq!(all(&[Some("a"), Some("b"), Some("c")]), [""; 0]);
        assert_eq!(all(&[Some("a"), Some("a"), Some("b"), Some("b")]), [""; 0], "half is no majority");
        assert_eq!(all(&[Some("a")]), [""; 0], "one voter cannot be spread");
        assert!(all(&[None, None, Some("b")])[0].contains("count as sharing one"));
        assert!(placement([], &voters(&[None, None, None])).is_empty(), "no key is configured");
    }
}
