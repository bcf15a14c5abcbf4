//! `--output FORMAT[=FILE]`: where each form of a result goes. Owns its grammar, the one form that may go to stdout, and
//! whether that is coloured. The commands own their formats.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;

/// One form of a result, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Output<Format> {
    /// The form.
    pub format: Format,
    /// The file; `None` for stdout.
    pub file: Option<PathBuf>,
}

impl<Format: clap::ValueEnum> FromStr for Output<Format> {
    type Err = String;

    fn from_str(text: &str) -> Result<Output<Format>, String> {
        let (format, file) = text.split_once('=').map_or((text, None), |(format, file)| (format, Some(file)));
        let format = Format::from_str(format, false).map_err(|_| {
            let known = Format::value_variants().iter().filter_map(Format::to_possible_value);
            let known: Vec<String> = known.map(|value| value.get_name().to_owned()).collect();
            format!("{format:?} is not one of {}; write FORMAT or FORMAT=FILE", known.join(", "))
        })?;
        match file {
            Some("") => Err("the file after = is missing".to_owned()),
            Some("-") | None => Ok(Output { format, file: None }),
            Some(file) => Ok(Output { format, file: Some(file.into()) }),
        }
    }
}

/// When a table on stdout has colours.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Colours {
    /// Colours in the table: auto (on a terminal, unless NO_COLOR is set), always or never
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(super) color: clap::ColorChoice,
}

/// Checks that at most one form goes to each place, and none to a file that is read: `inputs`.
///
/// # Errors
/// Two forms would go to one place, or one to an input.
pub(super) fn check<'i, Format>(
    outputs: &[Output<Format>],
    inputs: impl IntoIterator<Item = &'i PathBuf>,
) -> anyhow::Result<()> {
    let to_stdout = outputs.iter().filter(|output| output.file.is_none()).count();
    anyhow::ensure!(to_stdout <= 1, "--output: only one format can go to stdout; write the others as FORMAT=FILE");
    let inputs: BTreeSet<PathBuf> = inputs.into_iter().map(|file| place(file)).collect();
    let mut files = BTreeSet::new();
    for file in outputs.iter().filter_map(|output| output.file.as_ref()) {
        let name = file.display();
        anyhow::ensure!(!inputs.contains(&place(file)), "--output: {name} is read too, and would be overwritten");
        anyhow::ensure!(files.insert(place(file)), "--output: two forms would go to {name}; give each its own file");
    }
    Ok(())
}

/// A path by which two names of one file are known to be the same.
fn place(file: &Path) -> PathBuf {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (file.canonicalize(), folder.canonicalize(), file.file_name()) {
        (Ok(file), _, _) => file,
        // The file does not exist yet.
        (Err(_), Ok(folder), Some(name)) => folder.join(name),
        _ => file.to_owned(),
    }
}

/// Whether text on stdout is coloured: `auto` asks the terminal, and `NO_COLOR` and its kind.
pub(super) fn is_coloured(choice: clap::ColorChoice) -> bool {
    match choice {
        clap::ColorChoice::Always => true,
        clap::ColorChoice::Never => false,
        clap::ColorChoice::Auto => anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never,
    }
}

/// How a form may look, by where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// Whether it is coloured.
    pub coloured: bool,
    /// Whether it goes to a terminal.
    pub to_terminal: bool,
}

/// Writes each form to its place. `render` gets a format, and how it may look.
///
/// # Errors
/// A file cannot be written.
pub(super) fn write<Format: Copy>(
    outputs: &[Output<Format>],
    color: clap::ColorChoice,
    render: impl Fn(Format, Look) -> String,
) -> anyhow::Result<()> {
    for Output { format, file } in outputs {
        match file {
            Some(file) => {
                let text = render(*format, Look { coloured: false, to_terminal: false });
                std::fs::write(file, text).with_context(|| format!("{}: cannot be written", file.display()))?;
            }
            None => {
                let to_terminal = std::io::stdout().is_terminal();
                let text = render(*format, Look { coloured: is_coloured(color), to_terminal });
                print(&text)?;
            }
        }
    }
    Ok(())
}

/// Writes to stdout. A reader that has seen enough, as `head` has, is no failure.
///
/// # Errors
/// Stdout cannot be written.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("stdout cannot be written"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
    enum Format {
        Table,
        Json,
    }

    #[test]
    fn a_format_goes_to_stdout_or_to_a_file() {
        let read = |text: &str| text.parse::<Output<Format>>();
        assert_eq!(read("table"), Ok(Output { format: Format::Table, file: None }));
        assert_eq!(read("json=-"), Ok(Output { format: Format::Json, file: None }));
        assert_eq!(read("json=a=b"), Ok(Output { format: Format::Json, file: Some("a=b".into()) }));
        assert_eq!(read("json="), Err("the file after = is missing".to_owned()));
        assert_eq!(read("yaml"), Err("\"yaml\" is not one of table, json; write FORMAT or FORMAT=FILE".to_owned()));
        let [table, json] = ["table", "json"].map(|text| read(text).unwrap());
        assert!(check(&[table.clone(), json.clone()], []).is_err());
        assert!(check(&[table, Output { file: Some("f".into()), ..json.clone() }], []).is_ok());
        let [one, same] = ["new.json", "./new.json"].map(|file| Output { file: Some(file.into()), ..json.clone() });
        assert!(check(&[one.clone(), same], []).is_err(), "two names of one file");
        let input = PathBuf::from("./new.json");
        assert!(check(&[one], [&input]).is_err(), "an input is not overwritten");
    }
}
