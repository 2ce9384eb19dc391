use super::{LabelSelector, Operator, Requirement, SelectorError};
use crate::content;
use crate::field::go_quote;

/// Parses a label selector.
pub(super) fn parse(text: &str) -> Result<LabelSelector, SelectorError> {
    let mut parser = Parser { tokens: lex(text), position: 0 };
    let mut requirements = Vec::new();
    loop {
        let token = parser.peek();
        match token.kind {
            Kind::End => break,
            Kind::Word | Kind::Not => {}
            _ => {
                return refuse(format!(
                    "found '{}', expected: !, identifier, or 'end of string'",
                    token.text
                ));
            }
        }
        let requirement = parser.requirement();
        requirements.push(
            requirement.map_err(|error| SelectorError(format!("unable to parse requirement: {error}")))?,
        );
        let token = parser.next();
        match token.kind {
            Kind::End => break,
            Kind::Comma => {
                let token = parser.peek();
                if !matches!(token.kind, Kind::Word | Kind::Not) {
                    return refuse(format!("found '{}', expected: identifier after ','", token.text));
                }
            }
            _ => return refuse(format!("found '{}', expected: ',' or 'end of string'", token.text)),
        }
    }
    requirements.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(LabelSelector { requirements })
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Word,
    Comma,
    Not,
    Open,
    Close,
    Operator(Operator),
    Error,
    End,
}

#[derive(Clone, Copy)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
}

fn refuse<T>(message: String) -> Result<T, SelectorError> {
    Err(SelectorError(message))
}

fn is_symbol(b: u8) -> bool {
    matches!(b, b'=' | b'!' | b'(' | b')' | b',' | b'>' | b'<')
}

fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\r' | b'\n')
}

fn symbol(text: &str) -> Option<Kind> {
    Some(match text {
        ")" => Kind::Close,
        "(" => Kind::Open,
        "," => Kind::Comma,
        "!" => Kind::Not,
        "==" => Kind::Operator(Operator::DoubleEquals),
        "=" => Kind::Operator(Operator::Equals),
        "!=" => Kind::Operator(Operator::NotEquals),
        ">" => Kind::Operator(Operator::GreaterThan),
        "<" => Kind::Operator(Operator::LessThan),
        _ => return None,
    })
}

/// Splits into words and the longest symbols; the last token is `End`.
fn lex(text: &str) -> Vec<Token<'_>> {
    let bytes = text.as_bytes();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        if is_space(bytes[at]) {
            at += 1;
            continue;
        }
        let start = at;
        if is_symbol(bytes[at]) {
            let two = text.get(at..at + 2).and_then(symbol);
            let kind = match two {
                Some(kind) => {
                    at += 2;
                    kind
                }
                None => {
                    at += 1;
                    symbol(&text[start..at]).unwrap_or(Kind::Error)
                }
            };
            tokens.push(Token { kind, text: &text[start..at] });
            continue;
        }
        while at < bytes.len() && !is_symbol(bytes[at]) && !is_space(bytes[at]) {
            at += 1;
        }
        let word = &text[start..at];
        let kind = match word {
            "in" => Kind::Operator(Operator::In),
            "notin" => Kind::Operator(Operator::NotIn),
            _ => Kind::Word,
        };
        tokens.push(Token { kind, text: word });
    }
    tokens.push(Token { kind: Kind::End, text: "" });
    tokens
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    position: usize,
}

impl<'a> Parser<'a> {
    /// The token at hand, `in` and `notin` taken as words. Past the end there is only the end.
    fn peek(&self) -> Token<'a> {
        let mut token = self.raw();
        if matches!(token.kind, Kind::Operator(Operator::In | Operator::NotIn)) {
            token.kind = Kind::Word;
        }
        token
    }

    fn raw(&self) -> Token<'a> {
        self.tokens.get(self.position).copied().unwrap_or(Token { kind: Kind::End, text: "" })
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        self.position += 1;
        token
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let mut token = self.next();
        let negated = token.kind == Kind::Not;
        if negated {
            token = self.next();
        }
        if token.kind != Kind::Word {
            return refuse(format!("found '{}', expected: identifier", token.text));
        }
        let key = token.text.to_owned();
        let errors = content::label_key(&key);
        if !errors.is_empty() {
            return refuse(format!("<nil>: Invalid value: {}: {}", go_quote(&key), errors.join("; ")));
        }
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek().kind, Kind::End | Kind::Comma) {
            return Requirement::new(key, Operator::Exists, Vec::new());
        }
        let token = self.raw();
        self.position += 1;
        let Kind::Operator(operator) = token.kind else {
            return refuse(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", token.text));
        };
        let mut values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        values.sort();
        values.dedup();
        Requirement::new(key, operator, values)
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        let token = self.next();
        if token.kind != Kind::Open {
            return refuse(format!("found '{}' expected: '('", token.text));
        }
        let token = self.peek();
        match token.kind {
            Kind::Close => {
                self.position += 1;
                Ok(vec![String::new()])
            }
            Kind::Word | Kind::Comma => {
                let values = self.words()?;
                if self.next().kind == Kind::Close {
                    return Ok(values);
                }
                refuse(format!("found '{}', expected: ')'", token.text))
            }
            _ => refuse(format!("found '{}', expected: ',', ')' or identifier", token.text)),
        }
    }

    /// Words between commas up to a closing parenthesis; nothing between two commas is an empty word.
    fn words(&mut self) -> Result<Vec<String>, SelectorError> {
        let mut words: Vec<String> = Vec::new();
        loop {
            let token = self.next();
            match token.kind {
                Kind::Word => {
                    words.push(token.text.to_owned());
                    let after = self.peek();
                    match after.kind {
                        Kind::Comma => {}
                        Kind::Close => return Ok(words),
                        _ => return refuse(format!("found '{}', expected: ',' or ')'", after.text)),
                    }
                }
                Kind::Comma => {
                    let after = self.peek().kind;
                    if words.is_empty() || matches!(after, Kind::Close | Kind::Comma) {
                        words.push(String::new());
                    }
                    if after == Kind::Close {
                        return Ok(words);
                    }
                }
                _ => return refuse(format!("found '{}', expected: ',', or identifier", token.text)),
            }
        }
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.peek().kind, Kind::End | Kind::Comma) {
            return Ok(String::new());
        }
        let token = self.next();
        match token.kind {
            Kind::Word => Ok(token.text.to_owned()),
            _ => refuse(format!("found '{}', expected: identifier", token.text)),
        }
    }
}
