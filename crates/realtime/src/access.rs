//! Who may have a topic.

/// Somebody who asks, as authentication found out.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The user.
    pub user: &'a str,
    /// The roles of the user.
    pub roles: &'a [Box<str>],
    /// Further claims, each a name and one value; a name with several values stands there several times.
    pub claims: &'a [(Box<str>, Box<str>)],
}

impl<'a> Subject<'a> {
    /// Goes through the values of a claim: `sub` is the user, `role` each role, any other name what the claims say.
    ///
    /// A claim that happens to be named `sub` or `role` counts for nothing.
    pub(crate) fn values(&self, claim: &str) -> impl Iterator<Item = &'a str> {
        let user = (claim == "sub").then_some(self.user);
        let roles = if claim == "role" { self.roles } else { &[] };
        let claims = if matches!(claim, "sub" | "role") { &[] } else { self.claims };
        let claims = claims.iter().filter(move |(name, _)| **name == *claim).map(|(_, value)| &**value);
        user.into_iter().chain(roles.iter().map(|role| &**role)).chain(claims)
    }

    fn holds(&self, claim: &str, value: &str) -> bool {
        self.values(claim).any(|held| held == value)
    }
}

/// Who may have the topics of a pattern. Each way in suffices; by default there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Everybody of the tenant may.
    pub everyone: bool,
    /// Whoever has one of these roles may.
    pub roles: Vec<Box<str>>,
    /// Members may: those who hold, for every placeholder of the pattern, a claim of its name and value. `sub` means the
    /// user and `role` one of the roles. A pattern without placeholders has no members.
    pub members: bool,
}

impl Access {
    /// Tells whether the subject may have the topic that was divided into these captures.
    #[must_use]
    pub fn allows(&self, captures: &[(&str, &str)], subject: &Subject<'_>) -> bool {
        self.everyone
            || self.roles.iter().any(|role| subject.roles.contains(role))
            || (self.members && is_member(captures, subject))
    }
}

fn is_member(captures: &[(&str, &str)], subject: &Subject<'_>) -> bool {
    !captures.is_empty() && captures.iter().all(|(claim, value)| subject.holds(claim, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(access: &Access, captures: &[(&str, &str)], expected: bool) {
        let roles = ["staff".into(), "nurse".into()];
        let claims = [
            ("zone".into(), "north".into()),
            ("zone".into(), "south".into()),
            ("floor".into(), "3".into()),
            ("sub".into(), "bob".into()),
            ("role".into(), "admin".into()),
        ];
        let subject = Subject { user: "ada", roles: &roles, claims: &claims };
        assert_eq!(access.allows(captures, &subject), expected, "{access:?} {captures:?}");
    }

    #[test]
    fn nobody_may_by_default() {
        check(&Access::default(), &[], false);
        check(&Access::default(), &[("sub", "ada")], false);
    }

    #[test]
    fn everybody_and_roles() {
        check(&Access { everyone: true, ..Access::default() }, &[("sub", "bob")], true);
        let role = |role: &str| Access { roles: vec!["boss".into(), role.into()], ..Access::default() };
        check(&role("nurse"), &[], true);
        check(&role("nur"), &[], false);
        check(&role("admin"), &[], false);
    }

    #[test]
    fn members_hold_every_placeholder() {
        let members = Access { members: true, ..Access::default() };
        for (captures, expected) in [
            (&[][..], false),
            (&[("sub", "ada")], true),
            (&[("sub", "bob")], false),
            (&[("sub", "Ada")], false),
            (&[("role", "nurse")], true),
            (&[("role", "admin")], false),
            (&[("zone", "north")], true),
            (&[("zone", "south")], true),
            (&[("zone", "east")], false),
            (&[("zone", "south"), ("floor", "3")], true),
            (&[("zone", "south"), ("floor", "4")], false),
            (&[("zone", "south"), ("room", "3")], false),
        ] {
            check(&members, captures, expected);
        }
    }
}
