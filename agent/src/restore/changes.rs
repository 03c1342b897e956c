//! What a restore would change: told by a dry run, and by the comparison after a restore, when
//! there should be nothing left.

use std::collections::HashSet;
use std::{fmt, io};

use minicbor::{Decode, Encode};
use vsync_protocol::tree::EntryPath;

use super::RestoreReport;
use crate::shelf::Shelf;
use crate::volume::Attribute;

/// One entry that is not as in the snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Change {
    /// Where in the target; its own directory has the empty path.
    #[n(0)]
    pub(crate) path: EntryPath,
    /// What a restore does about it.
    #[n(1)]
    pub(crate) action: Action,
}

/// What a restore does about an entry.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Action {
    /// Nothing is there.
    #[n(0)]
    Create,
    /// In what is there, this differs.
    #[n(1)]
    Change(#[n(0)] Vec<Property>),
    /// The snapshot does not have it. What is in a directory goes with it, unnamed.
    #[n(2)]
    Delete,
}

/// What may differ in an entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub(crate) enum Property {
    /// A directory where there should be a file, for instance.
    #[n(0)]
    Kind,
    /// The bytes of a file, or how many they are.
    #[n(1)]
    Content,
    /// Where a symbolic link leads.
    #[n(2)]
    Target,
    /// Which device a device file stands for.
    #[n(3)]
    Device,
    /// It is no name of the file that it should be one of, or of one that it should not be.
    #[n(4)]
    HardLinks,
    /// Owner, mode, time or an extended attribute.
    #[n(5)]
    Attribute(#[n(0)] Attribute),
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind => f.write_str("kind"),
            Self::Content => f.write_str("content"),
            Self::Target => f.write_str("link target"),
            Self::Device => f.write_str("device number"),
            Self::HardLinks => f.write_str("hard links"),
            Self::Attribute(attribute) => attribute.fmt(f),
        }
    }
}

/// Changes in path order, however many: each thread that compares keeps its own, in that order.
#[derive(Default)]
pub(crate) struct Changes(pub(super) Vec<Shelf<Change>>);

impl Changes {
    /// All of them, in path order.
    ///
    /// # Errors
    /// When what is kept compressed cannot be unpacked, for lack of memory for instance.
    pub(crate) fn iter(&self) -> impl Iterator<Item = io::Result<Change>> {
        let mut lists: Vec<_> = self.0.iter().map(|list| list.forwards().peekable()).collect();
        std::iter::from_fn(move || {
            let mut heads: Vec<_> =
                lists.iter_mut().filter_map(|list| Some((place(list.peek()?).cloned(), list))).collect();
            let first =
                heads.iter().enumerate().min_by(|(_, (a, _)), (_, (b, _))| a.cmp(b)).map(|(number, _)| number)?;
            heads.swap_remove(first).1.next()
        })
    }
}

/// None for a failure, which comes before everything.
fn place(change: &io::Result<Change>) -> Option<&EntryPath> {
    change.as_ref().ok().map(|change| &change.path)
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Changes({})", self.0.iter().map(Shelf::len).sum::<u64>())
    }
}

impl RestoreReport {
    /// Of the differences that a comparison found after this restore, those that it has not
    /// told of already: what it names as damaged or not restored may differ.
    pub(crate) fn unexplained<'a>(&self, found: &'a Changes) -> impl Iterator<Item = io::Result<Change>> + use<'a> {
        let damaged: HashSet<EntryPath> = self.damaged.iter().map(|(path, _)| path.clone()).collect();
        let lacking: HashSet<(EntryPath, Attribute)> =
            self.unrestored.iter().map(|lacks| (lacks.path.clone(), lacks.what.clone())).collect();
        found.iter().filter_map(move |change| match change {
            Ok(change) if damaged.contains(&change.path) => None,
            Ok(change) => without(change, &lacking).map(Ok),
            Err(error) => Some(Err(error)),
        })
    }
}

/// What is left of a change without the attributes that are known to be lacking.
fn without(change: Change, lacking: &HashSet<(EntryPath, Attribute)>) -> Option<Change> {
    let Change { path, action } = change;
    let lacks = |what: Attribute| lacking.contains(&(path.clone(), what));
    let action = match action {
        Action::Create => (!lacks(Attribute::Device)).then_some(Action::Create),
        Action::Change(differing) => {
            let told = |property: &Property| match property {
                Property::Attribute(what @ Attribute::Xattr(_)) => lacks(what.clone()) || lacks(Attribute::Xattrs),
                Property::Attribute(what) => lacks(what.clone()),
                // What cannot be made stays what it was.
                Property::Kind | Property::Device | Property::HardLinks => lacks(Attribute::Device),
                Property::Content | Property::Target => false,
            };
            let left: Vec<Property> = differing.into_iter().filter(|property| !told(property)).collect();
            (!left.is_empty()).then_some(Action::Change(left))
        }
        Action::Delete => Some(Action::Delete),
    };
    action.map(|action| Change { path, action })
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::volume::Unrestored;

    fn path(text: &str) -> EntryPath {
        EntryPath::new(text).unwrap()
    }

    fn change(text: &str, properties: &[Property]) -> Change {
        Change { path: path(text), action: Action::Change(properties.to_vec()) }
    }

    fn changes(lists: &[&[Change]]) -> Changes {
        let shelf = |list: &&[Change]| {
            let mut shelf = Shelf::default();
            list.iter().for_each(|change| shelf.push(change).unwrap());
            shelf
        };
        Changes(lists.iter().map(shelf).collect())
    }

    #[test]
    fn what_several_threads_found_comes_in_path_order() {
        let at = |text: &str| Change { path: path(text), action: Action::Create };
        let (planned, one, other) = ([at("a"), at("a/b"), at("z")], [at(""), at("a/c")], [at("b"), at("c")]);
        let found = changes(&[&planned, &one, &other, &[]]);
        let paths: Vec<String> = found.iter().map(|change| change.unwrap().path.to_string()).collect();
        assert_eq!(paths, ["", "a", "a/b", "a/c", "b", "c", "z"]);
        assert_eq!(format!("{found:?}"), "Changes(7)");
    }

    #[test]
    fn only_what_a_restore_has_told_of_may_differ() {
        let (mode, owner) = (Property::Attribute(Attribute::Mode), Property::Attribute(Attribute::Owner));
        let xattr = |name: &str| Property::Attribute(Attribute::Xattr(name.into()));
        let lacks = |text: &str, what| Unrestored { path: path(text), what, error: Errno::PERM };
        let restored = RestoreReport {
            damaged: vec![(path("damaged"), "why".into())],
            unrestored: vec![
                lacks("owned", Attribute::Owner),
                lacks("unlisted", Attribute::Xattrs),
                lacks("device", Attribute::Device),
                lacks("other", Attribute::Device),
            ],
            ..RestoreReport::default()
        };
        let found = [
            change("damaged", &[Property::Content, mode.clone()]),
            Change { path: path("device"), action: Action::Create },
            Change { path: path("gone"), action: Action::Create },
            Change { path: path("more"), action: Action::Delete },
            change("other", &[Property::Kind]),
            change("owned", &[owner.clone(), mode.clone()]),
            change("owned/by", std::slice::from_ref(&owner)),
            change("unlisted", &[xattr("user.a")]),
            change("xattr", &[xattr("user.a"), xattr("user.b")]),
        ];
        let left: Vec<Change> = restored.unexplained(&changes(&[&found])).map(Result::unwrap).collect();
        let expected = [
            found[2].clone(),
            found[3].clone(),
            change("owned", &[mode]),
            change("owned/by", &[owner]),
            found[8].clone(),
        ];
        assert_eq!(left, expected);
    }
}
