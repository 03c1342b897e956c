//! "Did you mean …?"

/// The candidate that `name` was most likely meant to be; `None` if nothing is near.
///
/// Near is one slip for every three letters: enough for a typo, too little for a guess.
#[must_use]
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (name.chars().count() / 3).max(1);
    let near = candidates.into_iter().map(|candidate| (distance(name, candidate), candidate));
    near.filter(|&(distance, _)| distance <= allowed)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// `; did you mean NAME?`, or nothing: the end of an error message about `name`.
#[must_use]
pub(crate) fn suffix<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, candidates).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
}

/// How many letters must be put in, taken out, replaced, or swapped with the next, without regard to case.
fn distance(from: &str, to: &str) -> usize {
    strsim::osa_distance(&from.to_lowercase(), &to.to_lowercase())
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
            ("aut", Some("uat")),
            ("production", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, volumes), near, "{name}");
        }
        assert_eq!(suffix("uatt", volumes), "; did you mean `uat`?");
    }
}
