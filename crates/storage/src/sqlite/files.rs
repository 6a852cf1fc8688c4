//! Files beside the database, and making them durable.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The path of a file whose name goes on with a suffix, such as `-wal`.
pub(super) fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The folder that a file lies in.
pub(super) fn folder(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes the content of a file durable.
pub(super) fn sync(file: &Path) -> io::Result<()> {
    File::open(file)?.sync_all()
}

/// Makes the names in a file's folder durable.
pub(super) fn sync_folder(file: &Path) -> io::Result<()> {
    File::open(folder(file))?.sync_all()
}

/// Removes a file that may be absent.
pub(super) fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Renames a file, durably.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_folder(to)
}

/// The URI of a database file, with its parameters.
pub(super) fn uri(file: &Path, parameters: &str) -> Result<String, &'static str> {
    let path = file.to_str().ok_or("the path is not UTF-8")?;
    // https://www.sqlite.org/uri.html, §3.1: what would begin the parameters or an escape is escaped itself.
    let path = path.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    Ok(format!("file:{path}?{parameters}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_goes_on_behind_its_extension() {
        assert_eq!(beside(Path::new("a/b.db"), "-wal"), Path::new("a/b.db-wal"));
        assert_eq!(
            (folder(Path::new("a/b.db")), folder(Path::new("b.db"))),
            (Path::new("a"), Path::new("."))
        );
    }

    #[test]
    fn a_uri_names_the_file_whatever_it_is_called() {
        let written = uri(Path::new("/a b/50%?#.db"), "mode=ro");
        assert_eq!(written.as_deref(), Ok("file:/a b/50%25%3f%23.db?mode=ro"));
    }
}
