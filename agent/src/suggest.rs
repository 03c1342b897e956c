//! "Did you mean …?"

/// The candidate that `name` was most likely meant to be; `None` if nothing is near.
///
/// Near is one slip for every three letters: enough for a typo, too little for a guess.
#[must_use]
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (name.chars().count() / 3).max(1);
    let near = candidates.into_iter().map(|candidate| (distance(name, candidate), candidate));
    near.filter(|&(distance, _)| distance <= allowed)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// `; did you mean NAME?`, or nothing: the end of an error message about `name`.
#[must_use]
pub fn suffix<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, candidates).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
}

/// Levenshtein's distance without regard to case: insertions, deletions, replacements.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (deleted, c) in from.to_lowercase().chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], deleted + 1);
        for (at, &other) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(c != other);
            diagonal = row[at + 1];
            row[at + 1] = replaced.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_are_near_and_other_words_are_not() {
        let volumes = ["barman_recover", "montagu_db_volume", "uat"];
        for (name, near) in [
            ("barman_recovery", Some("barman_recover")),
            ("montagu-db-volume", Some("montagu_db_volume")),
            ("UAT", Some("uat")),
            ("ua", Some("uat")),
            ("production", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, volumes), near, "{name}");
        }
        assert_eq!(suffix("uatt", volumes), "; did you mean `uat`?");
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
