//! The image that helpers run: the configured one or, failing that, one made of this very program.

use std::fs;
use std::path::{Path, PathBuf};

use bollard::models::ImageInspect;
use bollard::query_parameters::CreateImageOptionsBuilder;
use bollard::{Docker, body_stream};
use bytes::Bytes;
use futures_util::stream::{self, TryStreamExt};

use super::engine::Engine;
use super::error::{DockerError, found};
use super::tar::{Archive, BadPath};

/// The image that helpers run unless the configuration names another.
pub const DEFAULT_IMAGE: &str = concat!("vsync/vsync:", env!("CARGO_PKG_VERSION"));

impl Engine {
    /// Makes an image that holds nothing but `program`, a statically linked vsync, as its entry point.
    pub async fn import_helper_image(&self, image: &str, program: &Path) -> Result<(), DockerError> {
        let program = Program::read(image, program)?;
        self.import(image, &program).await
    }

    /// Sees to it that `image` exists. If it is missing, or was made from another build of this program, makes it.
    pub(super) async fn ensure_helper_image(&self, image: &str) -> Result<(), DockerError> {
        let origin =
            match found(self.client().inspect_image(image).await).map_err(DockerError::image("inspect", image))? {
                None => Origin::Missing,
                Some(inspected) => Origin::of(inspected),
            };
        let own = || Program::read(image, Path::new("/proc/self/exe"));
        let program = match origin {
            Origin::Elsewhere => return Ok(()),
            Origin::Missing => own()?,
            Origin::Program(digest) => match own() {
                Ok(program) if program.digest() != digest => program,
                // A development build that cannot go into an image may still use the image of another build.
                Ok(_) | Err(_) => return Ok(()),
            },
        };
        self.import(image, &program).await
    }

    async fn import(&self, image: &str, program: &Program) -> Result<(), DockerError> {
        check_architecture(self.client(), image, program).await?;
        let (repository, tag) = split_reference(image);
        let changes =
            vec![format!(r#"ENTRYPOINT ["/{PROGRAM_INSIDE}"]"#), format!("LABEL {PROGRAM_LABEL}={}", program.digest())];
        let options =
            CreateImageOptionsBuilder::default().from_src("-").repo(repository).tag(tag).changes(changes).build();
        let root = body_stream(stream::iter([program.root_archive(image)?]));
        let progress = self.client().create_image(Some(options), Some(root), None);
        progress.try_for_each(async |_| Ok(())).await.map_err(DockerError::image("import", image))?;
        tracing::info!(image, program = %program.path.display(), "Made the helper image");
        Ok(())
    }
}

/// Where an image that is there came from.
enum Origin {
    /// Pulled, or built by hand: used as it is.
    Elsewhere,
    /// Made by us, from the program with this digest.
    Program(String),
    Missing,
}

impl Origin {
    fn of(image: ImageInspect) -> Self {
        let labels = image.config.and_then(|config| config.labels).unwrap_or_default();
        labels.get(PROGRAM_LABEL).map_or(Self::Elsewhere, |digest| Self::Program(digest.clone()))
    }
}

/// A statically linked program: it needs no other file to run.
struct Program {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Program {
    fn read(image: &str, path: &Path) -> Result<Self, DockerError> {
        // Read before it is resolved: an upgrade may have replaced the file that we run from, and `/proc/self/exe`
        // still is the program that runs.
        let bytes = fs::read(path).map_err(|source| DockerError::Program { program: path.to_owned(), source })?;
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if !is_static(&bytes) {
            let reason = "it is not a statically linked 64-bit Linux program".to_owned();
            return Err(DockerError::NoImage { image: image.to_owned(), program: path, reason });
        }
        Ok(Self { path, bytes })
    }

    fn digest(&self) -> String {
        blake3::hash(&self.bytes).to_hex().to_string()
    }

    fn root_archive(&self, image: &str) -> Result<Bytes, DockerError> {
        self.write_root().map_err(|BadPath(path)| DockerError::NoImage {
            image: image.to_owned(),
            program: self.path.clone(),
            reason: format!("{path:?} does not fit an archive"),
        })
    }

    fn write_root(&self) -> Result<Bytes, BadPath> {
        let mut root = Archive::with_capacity(self.bytes.len() + (16 << 10));
        for directory in ["usr", "usr/local", "usr/local/bin", "vsync", "vsync/volumes", "var", "var/lib"] {
            root.directory(directory, 0o755)?;
        }
        root.directory("tmp", 0o1777)?;
        root.file(PROGRAM_INSIDE, 0o755, &self.bytes)?;
        Ok(root.finish())
    }
}

async fn check_architecture(client: &Docker, image: &str, program: &Program) -> Result<(), DockerError> {
    let version = client.version().await.map_err(DockerError::image("import", image))?;
    let ours = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let theirs = version.arch.unwrap_or_else(|| ours.to_owned());
    if ours == theirs {
        return Ok(());
    }
    let reason = format!("it is built for {ours}, and the engine's machine is {theirs}");
    Err(DockerError::NoImage { image: image.to_owned(), program: program.path.clone(), reason })
}

/// A program is static if it asks for no interpreter (`PT_INTERP`), the dynamic linker. Reads 64-bit ELF.
fn is_static(program: &[u8]) -> bool {
    let word = |at: usize| program.get(at..at + 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let long = |at: usize| {
        let bytes = program.get(at..at.checked_add(8)?)?;
        usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    let segments = || {
        let (table, size, count) = (long(0x20)?, word(0x36)?, word(0x38)?);
        (0..count)
            .map(|index| {
                let at = table.checked_add(index * size)?;
                program.get(at..at.checked_add(4)?)
            })
            .collect::<Option<Vec<_>>>()
    };
    program.starts_with(ELF_64_LITTLE_ENDIAN)
        && segments().is_some_and(|kinds| !kinds.is_empty() && !kinds.contains(&PT_INTERP))
}

/// Splits `host:5000/vsync:1.2` into repository and tag.
fn split_reference(image: &str) -> (&str, &str) {
    match image.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (image, "latest"),
    }
}

const PROGRAM_INSIDE: &str = "usr/local/bin/vsync";
const PROGRAM_LABEL: &str = "vsync.helper.program";
const ELF_64_LITTLE_ENDIAN: &[u8] = b"\x7fELF\x02\x01";
const PT_INTERP: &[u8] = &[3, 0, 0, 0];

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header and its table of segments, of the given kinds.
    fn elf(kinds: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56 * kinds.len()];
        bytes[..6].copy_from_slice(ELF_64_LITTLE_ENDIAN);
        bytes[0x20] = 64;
        bytes[0x36] = 56;
        bytes[0x38] = u8::try_from(kinds.len()).unwrap();
        for (index, &kind) in kinds.iter().enumerate() {
            bytes[64 + 56 * index] = kind;
        }
        bytes
    }

    #[test]
    fn a_program_without_interpreter_is_static() {
        let (load, dynamic, interpreter) = (1, 2, 3);
        assert!(is_static(&elf(&[load, load])));
        assert!(is_static(&elf(&[load, dynamic])), "position-independent static programs have a dynamic section");
        assert!(!is_static(&elf(&[load, interpreter, dynamic])));
        assert!(!is_static(&elf(&[])));
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(b""));
        let mut truncated = elf(&[load, load]);
        truncated.truncate(100);
        assert!(!is_static(&truncated));
    }

    #[test]
    fn a_reference_is_split_at_the_tag() {
        assert_eq!(split_reference("vsync/vsync:0.1.0"), ("vsync/vsync", "0.1.0"));
        assert_eq!(split_reference("vsync"), ("vsync", "latest"));
        assert_eq!(split_reference("host:5000/vsync"), ("host:5000/vsync", "latest"));
        assert_eq!(split_reference("host:5000/vsync:1"), ("host:5000/vsync", "1"));
    }

    #[test]
    fn a_program_that_will_not_do_is_refused_with_the_way_out() {
        let script = tempfile::NamedTempFile::new().unwrap();
        fs::write(script.path(), "#!/bin/sh\n").unwrap();
        let Err(error) = Program::read(DEFAULT_IMAGE, script.path()) else { panic!("a script was accepted") };
        let text = error.to_string();
        assert!(text.contains(DEFAULT_IMAGE) && text.contains("statically linked"), "{text}");
        assert!(text.contains("docker build -t"), "{text}");
    }
}
