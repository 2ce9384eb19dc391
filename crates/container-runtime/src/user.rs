//! Who a container runs as: names and numbers against the image's own `/etc/passwd` and `/etc/group`.

use cri::v1::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};
use serde::{Deserialize, Serialize};

use crate::error::RuntimeError;

/// A resolved identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Option<String>,
}

/// One line of `/etc/passwd`.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields.as_slice() else { return None };
        Some(Account { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

fn groups(group: &str) -> impl Iterator<Item = (&str, u32, Vec<&str>)> {
    group.lines().filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, gid, members] = fields.as_slice() else { return None };
        Some((*name, gid.parse().ok()?, members.split(',').filter(|member| !member.is_empty()).collect()))
    })
}

/// Finds out who a container runs as. The security context goes before what the image says.
pub(crate) fn resolve(
    context: &LinuxContainerSecurityContext,
    image_user: &str,
    passwd: &str,
    group: &str,
) -> Result<User, RuntimeError> {
    let wanted = match (&context.run_as_user, context.run_as_username.as_str()) {
        (Some(uid), _) => uid.value.to_string(),
        (None, "") => image_user.split(':').next().unwrap_or_default().to_owned(),
        (None, name) => name.to_owned(),
    };
    let by_image = context.run_as_user.is_none() && context.run_as_username.is_empty();
    let mut user = find_user(&wanted, passwd)?;
    let mut account_name = user.1;
    if let Some(group_of_image) = image_user.split_once(':').map(|(_, group)| group).filter(|_| by_image) {
        user.0.gid = find_group(group_of_image, group)?;
        // With a group of its own choosing the image leaves the account's groups behind.
        account_name = None;
    }
    let mut user = user.0;
    if let Some(gid) = &context.run_as_group {
        if context.run_as_user.is_none() && context.run_as_username.is_empty() {
            return Err(RuntimeError::invalid("user group is specified without user"));
        }
        user.gid = number(gid.value, "group")?;
    }
    user.groups = vec![user.gid];
    if context.supplemental_groups_policy() == SupplementalGroupsPolicy::Merge
        && let Some(name) = account_name
    {
        let member_of = groups(group).filter(|(_, _, members)| members.contains(&name));
        user.groups.extend(member_of.map(|(_, gid, _)| gid));
    }
    for &gid in &context.supplemental_groups {
        user.groups.push(number(gid, "supplemental group")?);
    }
    user.groups.sort_unstable();
    user.groups.dedup();
    Ok(user)
}

fn number(value: i64, what: &str) -> Result<u32, RuntimeError> {
    u32::try_from(value).map_err(|_| RuntimeError::invalid(format!("{what} {value} is out of range")))
}

fn find_user<'a>(wanted: &str, passwd: &'a str) -> Result<(User, Option<&'a str>), RuntimeError> {
    let wanted = if wanted.is_empty() { "0" } else { wanted };
    let uid: Option<u32> = match wanted.parse::<i64>() {
        Ok(uid) => Some(number(uid, "user")?),
        Err(_) => None,
    };
    let known = accounts(passwd).find(|account| match uid {
        Some(uid) => account.uid == uid,
        None => account.name == wanted,
    });
    match (known, uid) {
        (Some(Account { name, uid, gid, home }), _) => {
            let home = Some(home.to_owned()).filter(|home| home.starts_with('/'));
            Ok((User { uid, gid, groups: Vec::new(), home }, Some(name)))
        }
        (None, Some(uid)) => Ok((User { uid, ..User::default() }, None)),
        (None, None) => Err(RuntimeError::invalid(format!(
            "unable to find user {wanted}: no matching entries in passwd file"
        ))),
    }
}

fn find_group(wanted: &str, group: &str) -> Result<u32, RuntimeError> {
    if let Ok(gid) = wanted.parse() {
        return Ok(gid);
    }
    let found = groups(group).find(|(name, ..)| *name == wanted).map(|(_, gid, _)| gid);
    found.ok_or_else(|| {
        RuntimeError::invalid(format!("unable to find group {wanted}: no matching entries in group file"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::v1::Int64Value;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/var/www:/bin/sh\nbad line\n";
    const GROUP: &str = "root:x:0:\nweb:x:33:\nlogs:x:44:web,other\n";

    fn check(
        user: Option<i64>,
        group: Option<i64>,
        extra: &[i64],
        strict: bool,
        image: &str,
        expected: &str,
    ) {
        let context = LinuxContainerSecurityContext {
            run_as_user: user.map(|value| Int64Value { value }),
            run_as_group: group.map(|value| Int64Value { value }),
            supplemental_groups: extra.to_vec(),
            supplemental_groups_policy: i32::from(strict),
            ..LinuxContainerSecurityContext::default()
        };
        let actual = match resolve(&context, image, PASSWD, GROUP) {
            Ok(user) => format!("{}:{} {:?}", user.uid, user.gid, user.groups),
            Err(_) => "error".to_owned(),
        };
        assert_eq!(actual, expected);
    }

    #[test]
    fn the_context_goes_before_the_image() {
        check(None, None, &[], false, "", "0:0 [0]");
        check(None, None, &[], false, "web", "33:33 [33, 44]");
        check(None, None, &[], true, "web", "33:33 [33]");
        check(None, None, &[], false, "web:logs", "33:44 [44]");
        check(None, None, &[], false, "33:7", "33:7 [7]");
        check(Some(33), None, &[5], false, "root", "33:33 [5, 33, 44]");
        check(Some(1000), None, &[], false, "", "1000:0 [0]");
        check(Some(1000), Some(2000), &[3000], false, "", "1000:2000 [2000, 3000]");
    }

    #[test]
    fn what_nobody_is_called_is_an_error() {
        check(None, None, &[], false, "nosuch", "error");
        check(None, None, &[], false, "web:nosuch", "error");
        check(Some(-1), None, &[], false, "", "error");
        check(None, Some(1), &[], false, "", "error");
    }
}
