//! Which recordings are meant.

use std::{
    fmt, fs,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

/// Ends of names by which the recordings of a folder are known. A file that is named needs none.
const ENDINGS: &[&str] = &[
    "3gp", "aac", "aif", "aiff", "amr", "avi", "caf", "flac", "m4a", "m4b", "m4v", "mka", "mkv", "mov",
    "mp3", "mp4", "mpeg", "mpg", "mpga", "oga", "ogg", "ogv", "opus", "wav", "weba", "webm", "wma", "wmv",
];

/// A recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    Stdin,
    File(PathBuf),
}

impl fmt::Display for Input {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => formatter.write_str("standard input"),
            Self::File(file) => file.display().fmt(formatter),
        }
    }
}

impl Input {
    /// Its content, and how long that is, where it can be told.
    pub(super) fn open(&self) -> io::Result<(Box<dyn Read>, Option<u64>)> {
        match self {
            Self::Stdin => Ok((Box::new(io::stdin()), None)),
            Self::File(path) => {
                let file = File::open(path)?;
                let data = file.metadata()?;
                Ok((Box::new(file), data.is_file().then_some(data.len())))
            }
        }
    }

    /// Its name without and with its end.
    pub(super) fn names(&self) -> (String, String) {
        let text = |part: Option<&std::ffi::OsStr>| {
            part.map_or_else(String::new, |part| part.to_string_lossy().into())
        };
        match self {
            Self::Stdin => ("stdin".into(), "stdin".into()),
            Self::File(file) => (text(file.file_stem()), text(file.file_name())),
        }
    }
}

/// Every recording once: files as they are named, those of a folder by their names, but not those of its folders.
pub(super) fn expand(named: &[PathBuf]) -> anyhow::Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for path in named {
        let found = if path.as_os_str() == "-" {
            vec![Input::Stdin]
        } else if path.is_dir() {
            folder(path)?
        } else {
            // Known now rather than behind an hour of other recordings.
            File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            vec![Input::File(path.clone())]
        };
        inputs.extend(found.into_iter().filter(|input| !inputs.contains(input)).collect::<Vec<_>>());
    }
    Ok(inputs)
}

fn folder(path: &Path) -> anyhow::Result<Vec<Input>> {
    let unreadable = || format!("cannot read the folder {}", path.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(unreadable)? {
        let file = entry.with_context(unreadable)?.path();
        let ending = file.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        if file.is_file() && ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str())) {
            files.push(file);
        }
    }
    if files.is_empty() {
        bail!(
            "the folder {} has no recordings, whose names end in {}; name a file to transcribe it whatever it is called",
            path.display(),
            ENDINGS.join(", ")
        );
    }
    files.sort();
    Ok(files.into_iter().map(Input::File).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_means_its_recordings_and_not_those_below() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["b.MP3", "a.wav", "notes.txt", "wav"] {
            fs::write(path(name), "").unwrap();
        }
        fs::create_dir(path("c.wav")).unwrap();
        fs::write(path("c.wav/d.wav"), "").unwrap();
        let file = |name: &str| Input::File(path(name));
        let found = expand(&[path("notes.txt"), folder.path().into(), path("a.wav"), "-".into(), "-".into()])
            .unwrap();
        assert_eq!(found, [file("notes.txt"), file("a.wav"), file("b.MP3"), Input::Stdin]);
        fs::remove_file(path("c.wav/d.wav")).unwrap();
        assert!(expand(&[path("c.wav")]).unwrap_err().to_string().contains("has no recordings"));
        assert!(expand(&[path("none.wav")]).unwrap_err().to_string().contains("none.wav"));
    }
}
