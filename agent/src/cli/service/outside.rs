//! What a container needs from outside besides configuration and key: the secrets that vsync.toml names, in variables
//! and files, the certificates of authorities, and programs in its image. Nothing else of the environment goes along.

use std::env;
use std::path::{Path, PathBuf};

use vsync_protocol::id::MachineName;

use super::super::report::{Exit, Failure};
use super::absolute;
use crate::config::{Command, Config, KeysConfig, Machine, RunHooks, Smtp, SmtpTls, VaultConfig, Way, Written};
use crate::docker::{Bind, Need, Service};
use crate::keys::{vault, vault::Origin};

/// Where systems keep the certificates of all authorities in one file.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/opt/etc/ssl/certs/ca-certificates.crt",
];

/// The variable that names such a file.
const BUNDLE: &str = "SSL_CERT_FILE";

/// What is collected for a container.
#[derive(Debug, Default)]
pub(in super::super) struct Outside {
    environment: Vec<(String, String)>,
    files: Vec<Bind>,
    needs: Vec<Need>,
    /// Whether somebody is talked to whose certificate an authority of this machine vouches for.
    trusts: bool,
}

impl Outside {
    /// What reading the keys takes.
    pub(in super::super) fn of_keys(&mut self, keys: &KeysConfig) -> Result<(), Failure> {
        let KeysConfig::Vault(vault) = keys else { return Ok(()) };
        self.certificates(vault.ca.as_deref(), vault.url.starts_with("https://"))?;
        self.token(vault)
    }

    /// What telling people of alerts takes on server `name`.
    pub(in super::super) fn of_alerts(&mut self, config: &Config, name: &MachineName) -> Result<(), Failure> {
        for entry in config.notify.iter().filter(|entry| entry.is_for(name)) {
            match &entry.way {
                Way::Webhook(url) | Way::Ping(url) => self.url(url)?,
                Way::Mail { smtp, password, .. } => {
                    let Smtp { tls, ca, .. } = smtp;
                    self.certificates(ca.as_deref(), *tls != SmtpTls::None)?;
                    password.as_deref().map_or(Ok(()), |name| self.named(name))?;
                }
            }
        }
        Ok(())
    }

    /// What the commands around backups of `machine` take: programs of the image.
    pub(in super::super) fn of_hooks(&mut self, config: &Config, machine: &Machine) {
        self.hooks(&machine.run, machine.name.as_str());
        for name in &machine.backup {
            if let Some(volume) = config.volume(name) {
                self.hooks(&volume.run, name.as_str());
            }
        }
    }

    /// Gives it all to a container.
    pub(in super::super) fn add_to(mut self, service: &mut Service) -> Result<(), Failure> {
        if self.trusts {
            let named = env::var_os(BUNDLE).filter(|file| !file.is_empty()).map(PathBuf::from);
            let usual = || BUNDLES.iter().map(PathBuf::from).find(|file| file.is_file());
            if let Some(file) = named.or_else(usual) {
                self.file(BUNDLE, &file)?;
            }
        }
        service.environment.extend(self.environment);
        for file in self.files {
            if !service.binds.iter().any(|known| known.to == file.to) {
                service.binds.push(file);
            }
        }
        service.needs.extend(self.needs);
        Ok(())
    }

    fn url(&mut self, url: &Written) -> Result<(), Failure> {
        match url {
            Written::Here(url) => {
                self.trusts |= url.starts_with("https://");
                Ok(())
            }
            // What it holds is read inside.
            Written::Variable(name) => {
                self.trusts = true;
                self.named(name)
            }
        }
    }

    fn certificates(&mut self, ca: Option<&Path>, encrypted: bool) -> Result<(), Failure> {
        match ca {
            Some(ca) => self.mount(ca).map(drop),
            None => {
                self.trusts |= encrypted;
                Ok(())
            }
        }
    }

    /// The same search as is made inside, for what there is to hand over.
    fn token(&mut self, vault: &VaultConfig) -> Result<(), Failure> {
        match vault::origin(vault) {
            Origin::Option(name) => self.secret(name).map(drop),
            Origin::Variable(name) => {
                self.variable(&name);
                Ok(())
            }
            Origin::Role(_) => {
                let given = self.secret(vault::SECRET_ID)?;
                vault.secret_id_file.as_deref().filter(|_| !given).map_or(Ok(()), |file| self.mount(file).map(drop))
            }
            // Inside there is no home directory.
            Origin::File(file) => self.file(&format!("{}_FILE", vault::TOKEN), &file),
            // The program inside says so.
            Origin::Nowhere => Ok(()),
        }
    }

    /// An option of vsync.toml: who names it there, but does not set it, has forgotten something.
    fn named(&mut self, name: &str) -> Result<(), Failure> {
        if self.secret(name)? {
            return Ok(());
        }
        Err(Failure::new(Exit::Usage, format!("{name}, which [[notify]] names, is not set"))
            .hint(format!("set {name}, or {name}_FILE to a file with it, where you run this")))
    }

    /// A secret option in the form in which it is given here. Returns whether it is.
    fn secret(&mut self, name: &str) -> Result<bool, Failure> {
        let (file, command) = (format!("{name}_FILE"), format!("{name}_COMMAND"));
        let path = value(&file);
        let mut given = self.variable(name);
        if let Some(path) = path {
            self.file(&file, Path::new(&path))?;
            given = true;
        }
        if self.variable(&command) {
            self.needs.push(Need { program: "sh".to_owned(), by: command });
            given = true;
        }
        Ok(given)
    }

    fn variable(&mut self, name: &str) -> bool {
        let value = value(name);
        let given = value.is_some();
        self.environment.extend(value.map(|value| (name.to_owned(), value)));
        given
    }

    /// A file, and the variable that says inside where it is.
    fn file(&mut self, variable: &str, path: &Path) -> Result<(), Failure> {
        let inside = self.mount(path)?;
        self.environment.push((variable.to_owned(), inside.display().to_string()));
        Ok(())
    }

    /// Returns where the file is inside: where it is on the machine.
    fn mount(&mut self, path: &Path) -> Result<PathBuf, Failure> {
        let from = absolute(path)?;
        let to = std::path::absolute(path).unwrap_or_else(|_| from.clone());
        self.files.push(Bind { from, to: to.clone(), write: false });
        Ok(to)
    }

    fn hooks(&mut self, hooks: &RunHooks, of: &str) {
        let RunHooks { before, after, failed, finally } = hooks;
        for (name, command) in
            [("run-before", before), ("run-after", after), ("run-failed", failed), ("run-finally", finally)]
        {
            let program = command.as_ref().filter(|command| !command.is_empty()).map(Command::argv);
            let program = program.and_then(|words| words.into_iter().next());
            self.needs.extend(program.map(|program| Need { program, by: format!("{name} of {of}") }));
        }
    }
}

fn value(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
