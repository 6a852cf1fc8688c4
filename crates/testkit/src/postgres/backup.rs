//! Backups of the files, and going back to one.

use std::fs;

use super::cluster::Cluster;
use super::programs::output;
use crate::TempFolder;

/// The files of a cluster as they were at a moment.
#[derive(Debug)]
pub struct Backup {
    folder: TempFolder,
}

impl Cluster {
    /// Takes a backup of the running server; what is committed meanwhile is in it or not.
    ///
    /// # Panics
    /// When the files cannot be copied.
    #[must_use]
    pub fn backup(&self) -> Backup {
        let folder = TempFolder::new();
        self.programs().give(folder.path());
        self.copy_files(&folder.path().join("data"), &[]);
        Backup { folder }
    }

    /// Goes back to a backup of itself, as an operator does: what was committed since is lost, and the server is a
    /// primary on a new timeline, on the same port.
    ///
    /// # Panics
    /// When the files cannot be copied, or the server does not start on them.
    pub fn restore(&mut self, backup: &Backup) {
        self.kill_immediate();
        let data = self.data();
        output(self.programs().system("rm").args(["-rf", "--"]).arg(&data));
        let mut copy = self.programs().system("cp");
        output(copy.arg("-R").arg(backup.folder.path().join("data")).arg(&data));
        // There is no archive, so recovery ends where the backup does. That it is asked for makes the new timeline.
        let settings = data.join("postgresql.auto.conf");
        let told = fs::read_to_string(&settings).expect("every cluster has the file");
        self.programs().write(&settings, &format!("{told}restore_command = 'false'\n"));
        self.programs().write(&data.join("recovery.signal"), "");
        self.start();
        self.wait_for_primary();
    }
}
