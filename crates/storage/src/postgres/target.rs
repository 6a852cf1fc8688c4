//! Connection strings, as they are written for other programs of PostgreSQL.

use std::fmt;
use std::path::PathBuf;

use tokio_postgres::Config;
use tokio_postgres::config::Host;

use super::PostgresError;

/// Where a database is, and how it is reached.
#[derive(Clone)]
pub struct PostgresTarget {
    /// A connection string: `postgres://user@host/db` or `host=… dbname=…`. Of several hosts only one that takes
    /// writes is used: the one that served last, else the first in their order.
    ///
    /// `sslmode` is `disable`, `prefer` (the default) or `require`. A certificate is always verified, the host's name
    /// included, so that `verify-ca` and `verify-full` mean the same as `require`.
    pub url: String,
    /// A PEM file with the certificates of the authorities that may sign the database's certificate; none: that of
    /// the connection string's `sslrootcert`, else those that the operating system trusts.
    pub tls_ca: Option<PathBuf>,
    /// Milliseconds that making a connection may take, over all hosts.
    pub connect_ms: u64,
}

impl fmt::Debug for PostgresTarget {
    /// Leaves the connection string out: it may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresTarget").field("tls_ca", &self.tls_ca).finish_non_exhaustive()
    }
}

/// A connection string that was understood.
pub(super) struct Understood {
    pub(super) config: Config,
    /// The file of `sslrootcert`.
    pub(super) tls_ca: Option<PathBuf>,
}

/// What the driver understands itself.
const KEPT: [&str; 15] = [
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "sslnegotiation",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "channel_binding",
];

/// What other programs understand, and what to do instead.
const REFUSED: [(&str, &str); 13] = [
    ("passfile", "put the password into the connection string"),
    ("service", "put what the service file says into the connection string"),
    ("sslcert", "certificates of clients are not supported: use a password"),
    ("sslkey", "certificates of clients are not supported: use a password"),
    ("sslpassword", "certificates of clients are not supported: use a password"),
    ("sslcrl", "lists of revoked certificates are not supported"),
    ("sslcrldir", "lists of revoked certificates are not supported"),
    ("requirepeer", "it is not supported"),
    ("require_auth", "it is not supported"),
    ("krbsrvname", "Kerberos is not supported: use a password"),
    ("gsslib", "Kerberos is not supported: use a password"),
    ("ssl_max_protocol_version", "the newest version that both sides know is used"),
    ("replication", "it is not for a store"),
];

/// What changes nothing about a store's connections, whatever its value.
const IGNORED: [&str; 7] = [
    "client_encoding",
    "fallback_application_name",
    "keepalives_count",
    "load_balance_hosts",
    "ssl_min_protocol_version",
    "sslcompression",
    "sslsni",
];

/// Reads a connection string. What is said about one that cannot be used repeats nothing of it but names of options:
/// it may hold a password, and a password that is not escaped may look like anything.
pub(super) fn understand(url: &str) -> Result<Understood, PostgresError> {
    let scheme = ["postgres://", "postgresql://"].into_iter().find(|scheme| url.starts_with(scheme));
    let (text, tls_ca) = match scheme {
        Some(scheme) => rewrite_url(url, scheme.len())?,
        None => rewrite_pairs(url)?,
    };
    let config = text.parse::<Config>().map_err(|error| refused(&told(&error)))?;
    let (hosts, addresses) = (config.get_hosts().len(), config.get_hostaddrs().len());
    if hosts == 0 {
        return Err(refused("it names no host"));
    }
    if addresses != 0 && addresses != hosts {
        return Err(refused("it has another number of hostaddr than of hosts"));
    }
    if config.get_ports().len() > 1 && config.get_ports().len() != hosts {
        return Err(refused("it has another number of ports than of hosts"));
    }
    if !config.get_hosts().iter().all(is_plain) {
        return Err(refused(
            "a host's name has a letter that no name has; in a password @ is written %40, / is %2F and ? is %3F",
        ));
    }
    if config.get_dbname().is_none() {
        return Err(refused("it names no database"));
    }
    Ok(Understood { config, tls_ca })
}

fn refused(reason: &str) -> PostgresError {
    PostgresError::Url(reason.to_owned())
}

/// What the driver says, if that is only the name of an option.
fn told(error: &tokio_postgres::Error) -> String {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    if cause.starts_with("invalid value for option") { cause } else { "it is malformed".into() }
}

fn is_plain(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => {
            !name.is_empty()
                && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':'))
        }
        #[cfg(unix)]
        Host::Unix(_) => true,
    }
}

/// What becomes of an option.
enum Fate {
    Kept,
    Replaced(&'static str),
    Dropped,
    Authorities,
}

fn fate(name: &str, value: &str) -> Result<Fate, PostgresError> {
    match (name, value) {
        // As everywhere, an option without a value is one that is not given.
        (_, "") => Ok(Fate::Dropped),
        ("sslmode", "disable" | "prefer" | "require") => Ok(Fate::Kept),
        ("sslmode", "verify-ca" | "verify-full") => Ok(Fate::Replaced("require")),
        ("sslmode", "allow") => Ok(Fate::Replaced("prefer")),
        ("sslmode", _) => Err(refused("sslmode is disable, prefer, require or verify-full")),
        ("sslrootcert", "system") => Ok(Fate::Dropped),
        ("sslrootcert", _) => Ok(Fate::Authorities),
        ("target_session_attrs", "any" | "read-write" | "primary") => Ok(Fate::Dropped),
        ("target_session_attrs", _) => {
            Err(refused("target_session_attrs is read-write: a store needs a database that takes writes"))
        }
        ("gssencmode", "disable" | "prefer") => Ok(Fate::Dropped),
        ("gssencmode", _) => Err(refused("gssencmode is not supported: use sslmode")),
        _ if KEPT.contains(&name) => Ok(Fate::Kept),
        _ if IGNORED.contains(&name) => Ok(Fate::Dropped),
        _ => match REFUSED.iter().find(|(own, _)| *own == name) {
            Some((own, instead)) => Err(refused(&format!("the option {own} cannot be used: {instead}"))),
            None => Err(refused(
                "it holds an option that is not known, or a password with letters that must be escaped",
            )),
        },
    }
}

/// Rewrites the options of a URL. What stands before the first `@` names the user, as the driver reads it.
fn rewrite_url(url: &str, scheme: usize) -> Result<(String, Option<PathBuf>), PostgresError> {
    let behind_user = url[scheme..].find('@').map_or(scheme, |at| scheme + at + 1);
    let Some(query) = url[behind_user..].find('?').map(|at| behind_user + at) else {
        return Ok((url.to_owned(), None));
    };
    let (mut kept, mut tls_ca) = (Vec::new(), None);
    for pair in url[query + 1..].split('&').filter(|pair| !pair.is_empty()) {
        let malformed = || refused("an option has no value, or is not text");
        let (name, value) = pair.split_once('=').ok_or_else(malformed)?;
        let (name, value) = (decoded(name).ok_or_else(malformed)?, decoded(value).ok_or_else(malformed)?);
        match fate(&name, &value)? {
            Fate::Kept => kept.push(pair.to_owned()),
            Fate::Replaced(by) => kept.push(format!("{name}={by}")),
            Fate::Dropped => {}
            Fate::Authorities => tls_ca = Some(PathBuf::from(value)),
        }
    }
    Ok((format!("{}?{}", &url[..query], kept.join("&")), tls_ca))
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let escaped = behind.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped =
            escaped.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = &behind[if escaped.is_some() { 2 } else { 0 }..];
    }
    String::from_utf8(bytes).ok()
}

/// Rewrites `name=value` pairs.
fn rewrite_pairs(text: &str) -> Result<(String, Option<PathBuf>), PostgresError> {
    let pairs = pairs(text).ok_or_else(|| refused("it is malformed"))?;
    let (mut kept, mut tls_ca) = (Vec::new(), None);
    let quoted = |name: &str, value: &str| {
        let value = value.replace('\\', "\\\\").replace('\'', "\\'");
        format!("{name}='{value}'")
    };
    for (name, value) in pairs {
        match fate(&name, &value)? {
            Fate::Kept => kept.push(quoted(&name, &value)),
            Fate::Replaced(by) => kept.push(quoted(&name, by)),
            Fate::Dropped => {}
            Fate::Authorities => tls_ca = Some(PathBuf::from(value)),
        }
    }
    Ok((kept.join(" "), tls_ca))
}

/// Takes pairs apart: a value may stand in single quotes, and a backslash escapes the next letter.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut letters = text.chars().peekable();
    let mut pairs = Vec::new();
    loop {
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        if letters.peek().is_none() {
            return Some(pairs);
        }
        let mut name = String::new();
        while let Some(letter) = letters.next_if(|letter| !letter.is_whitespace() && *letter != '=') {
            name.push(letter);
        }
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        letters.next_if_eq(&'=')?;
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        let in_quotes = letters.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match letters.next() {
                Some('\\') => value.push(letters.next()?),
                Some('\'') if in_quotes => break,
                Some(letter) if !in_quotes && letter.is_whitespace() => break,
                Some(letter) => value.push(letter),
                None if in_quotes => return None,
                None => break,
            }
        }
        pairs.push((name, value));
    }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::config::SslMode;

    use super::*;

    #[test]
    fn what_other_programs_take_is_understood() {
        let table: [(&str, SslMode, Option<&str>); 10] = [
            ("postgres://ada@one/app", SslMode::Prefer, None),
            ("postgres://ada@one/app?sslmode=verify-full", SslMode::Require, None),
            (
                "postgresql://ada@one/app?sslmode=verify-ca&sslrootcert=%2Fetc%2Fca.pem",
                SslMode::Require,
                Some("/etc/ca.pem"),
            ),
            ("postgres://ada:s%3F%40@one/app?sslmode=require&sslrootcert=system", SslMode::Require, None),
            ("postgres://ada:s?t@one/app?sslmode=disable&", SslMode::Disable, None),
            ("postgres://one,two:5433/app?target_session_attrs=primary&user=ada", SslMode::Prefer, None),
            (
                "host=one dbname=app sslmode=verify-full sslrootcert='/etc/my ca.pem'",
                SslMode::Require,
                Some("/etc/my ca.pem"),
            ),
            (" host = one,two  dbname='app' password = 'it\\'s' sslmode=allow ", SslMode::Prefer, None),
            ("host=/run/postgresql dbname=app gssencmode=disable connect_timeout=3", SslMode::Prefer, None),
            (
                "host=one dbname=app sslmode='' keepalives_count=3 load_balance_hosts=random",
                SslMode::Prefer,
                None,
            ),
        ];
        for (url, mode, tls_ca) in table {
            let understood = understand(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(understood.config.get_dbname(), Some("app"), "{url}");
            assert_eq!(understood.config.get_ssl_mode(), mode, "{url}");
            assert_eq!(understood.tls_ca, tls_ca.map(PathBuf::from), "{url}");
        }
        let quoted = understand("host=one dbname=app password = 'it\\'s \\\\'").expect("it is understood");
        assert_eq!(quoted.config.get_password(), Some(&b"it's \\"[..]));
    }

    #[test]
    fn what_cannot_be_used_is_told_without_secrets() {
        let table = [
            ("", "it names no host"),
            ("postgres://ada:sesame@one", "it names no database"),
            ("postgres://ada:sesame/app", "invalid value for option `port`"),
            ("postgres://ada:zq@zz@one/app", "a host's name"),
            ("postgres://ada@one/app?password=zq&zz=x", "an option that is not known"),
            ("postgres://ada@one/app?password=sesame&amp", "an option has no value"),
            ("postgres://ada:sesame@one/app?sslmode=sesame", "sslmode is disable"),
            (
                "postgres://ada:sesame@one/app?passfile=/root/sesame",
                "passfile cannot be used: put the password",
            ),
            ("postgres://ada:sesame@one/app?sslcert=sesame", "sslcert cannot be used"),
            (
                "postgres://ada:sesame@one/app?target_session_attrs=standby",
                "target_session_attrs is read-write",
            ),
            (
                "postgres://ada:sesame@one/app?connect_timeout=sesame",
                "invalid value for option `connect_timeout`",
            ),
            ("postgres://ada:%FF%sesame@one/app?options=%FFsesame", "an option has no value, or is not text"),
            ("host=one dbname=app password=zq zz", "it is malformed"),
            ("host=one dbname=app password=zq zz=x", "an option that is not known"),
            ("host=one dbname=app password='sesame", "it is malformed"),
            ("host=one dbname=app password=sesame\\", "it is malformed"),
            ("host=one,two port=1,2,3 dbname=app password=sesame", "another number of ports"),
            ("host=one,two hostaddr=127.0.0.1 dbname=app password=sesame", "another number of hostaddr"),
            ("host=one dbname=app service=sesame", "service cannot be used"),
            ("sesame", "it is malformed"),
        ];
        for (url, wanted) in table {
            let Err(error) = understand(url) else { panic!("{url} is understood") };
            let told = format!("{error} {error:?}");
            assert!(told.contains(wanted), "{url}: {told}");
            assert!(!["sesame", "zq", "zz"].iter().any(|part| told.contains(part)), "{url}: {told}");
        }
    }
}
