//! Certificates for servers that speak TLS.

use std::path::{Path, PathBuf};

use super::programs::{Programs, output};

/// An authority, a server's certificate, and an authority that nobody asked.
#[derive(Debug)]
pub(super) struct Certificates {
    pub(super) ca: PathBuf,
    pub(super) other_ca: PathBuf,
    folder: PathBuf,
}

const CURVE: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

impl Certificates {
    /// Makes them with `openssl` in a folder, for `localhost` and 127.0.0.1, for two days.
    pub(super) fn make(programs: &Programs, folder: &Path) -> Self {
        let made = Self {
            ca: folder.join("ca.crt"),
            other_ca: folder.join("other-ca.crt"),
            folder: folder.to_owned(),
        };
        made.authority(programs, "ca");
        made.authority(programs, "other-ca");
        made.server(programs);
        made.access_rules(programs);
        made
    }

    /// Returns what the server has to be told.
    pub(super) fn settings(&self) -> [String; 4] {
        let file = |name: &str| self.folder.join(name).display().to_string();
        [
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", file("server.crt")),
            format!("ssl_key_file={}", file("server.key")),
            format!("hba_file={}", file("hba.conf")),
        ]
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn authority(&self, programs: &Programs, name: &str) {
        let mut command = programs.system("openssl");
        command
            .args(["req", "-x509", "-days", "2", "-subj"])
            .arg(format!("/CN=Driftline test {name}"))
            .args(CURVE);
        command.args(["-addext", "keyUsage=critical,keyCertSign,cRLSign"]);
        command.arg("-keyout").arg(self.file(&format!("{name}.key")));
        output(command.arg("-out").arg(self.file(&format!("{name}.crt"))));
    }

    fn server(&self, programs: &Programs) {
        let mut request = programs.system("openssl");
        request.args(["req", "-subj", "/CN=localhost"]).args(CURVE);
        request.arg("-keyout").arg(self.file("server.key")).arg("-out").arg(self.file("server.csr"));
        output(&mut request);
        let names = "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n";
        programs.write(&self.file("server.ext"), names);
        let mut sign = programs.system("openssl");
        sign.args(["x509", "-req", "-days", "2", "-CAcreateserial"]);
        sign.arg("-in").arg(self.file("server.csr")).arg("-extfile").arg(self.file("server.ext"));
        sign.arg("-CA").arg(&self.ca).arg("-CAkey").arg(self.file("ca.key"));
        output(sign.arg("-out").arg(self.file("server.crt")));
    }

    /// Over TCP only who speaks TLS is let in.
    fn access_rules(&self, programs: &Programs) {
        let rules = "local all all trust\nhostssl all all 127.0.0.1/32 trust\nhostssl replication all 127.0.0.1/32 trust\n";
        programs.write(&self.file("hba.conf"), rules);
    }
}
