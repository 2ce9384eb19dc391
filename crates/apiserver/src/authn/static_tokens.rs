//! `--token-auth-file`: bearer tokens from a CSV file of `token,user,uid,"group1,group2"`.

use std::collections::HashMap;
use std::fmt;

use async_trait::async_trait;

use super::{Authenticated, AuthenticationError, TokenAuthenticator};
use crate::attributes::UserInfo;

/// Tokens that live as long as the process.
#[derive(Default)]
pub struct StaticTokens {
    users: HashMap<String, UserInfo>,
}

/// Why a token file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "token file must have at least 3 columns (token, user name, user uid), found {columns} in line {line}"
)]
pub struct TokenFileError {
    pub line: usize,
    pub columns: usize,
}

impl fmt::Debug for StaticTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticTokens").field("tokens", &self.users.len()).finish()
    }
}

impl StaticTokens {
    /// Later lines win over earlier ones with the same token; lines without a token are skipped.
    pub fn parse(csv: &str) -> Result<Self, TokenFileError> {
        let mut users = HashMap::new();
        for (index, line) in csv.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let mut columns = split_csv(line).into_iter();
            let count = columns.len();
            let (Some(token), Some(username), Some(uid)) = (columns.next(), columns.next(), columns.next())
            else {
                return Err(TokenFileError { line: index + 1, columns: count });
            };
            if token.is_empty() {
                tracing::warn!(line = index + 1, "empty token in the token file");
                continue;
            }
            let groups = columns
                .next()
                .filter(|groups| !groups.is_empty())
                .map(|groups| groups.split(',').map(|group| group.trim().to_owned()).collect())
                .unwrap_or_default();
            users.insert(token, UserInfo { username, uid, groups, ..UserInfo::default() });
        }
        Ok(Self { users })
    }

    /// Adds a token made by the server itself.
    pub fn insert(&mut self, token: impl Into<String>, user: UserInfo) {
        self.users.insert(token.into(), user);
    }
}

#[async_trait]
impl TokenAuthenticator for StaticTokens {
    async fn authenticate_token(
        &self,
        token: &str,
        _audiences: &[String],
    ) -> Result<Option<Authenticated>, AuthenticationError> {
        Ok(self.users.get(token).map(|user| Authenticated { user: user.clone(), audiences: Vec::new() }))
    }
}

/// Splits one line; a column may stand in double quotes, in which two quotes are one.
fn split_csv(line: &str) -> Vec<String> {
    let mut columns = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let column = columns.last_mut().expect("starts with one column");
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                column.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => columns.push(String::new()),
            c => column.push(c),
        }
    }
    columns.iter().map(|column| column.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn users_and_groups_come_from_columns() {
        let tokens = StaticTokens::parse("t1,alice,u1,\"dev,ops\"\n\n,nobody,u0\nt2,bob,u2\n").unwrap();
        let user = tokens.authenticate_token("t1", &[]).await.unwrap().unwrap().user;
        assert_eq!((user.username.as_str(), user.uid.as_str()), ("alice", "u1"));
        assert_eq!(user.groups, ["dev", "ops"]);
        assert!(tokens.authenticate_token("t2", &[]).await.unwrap().unwrap().user.groups.is_empty());
        assert_eq!(tokens.authenticate_token("", &[]).await.unwrap(), None);
    }

    #[test]
    fn short_lines_are_refused() {
        let error = StaticTokens::parse("t1,alice\n").unwrap_err();
        assert_eq!((error.line, error.columns), (1, 2));
    }
}
