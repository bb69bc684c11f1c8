//! Manual pages and shell completions for the package: causeway(1) and one page a command from the command line itself,
//! causeway.toml(5) from docs/configuration.md, so that there is nothing to keep in step.
//!
//! ```text
//! cargo run --example manual -- target/package
//! ```
//!
//! Of Markdown it knows what that page uses: headings, paragraphs, tables, code, links, `*emphasis*`.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use clap_complete::Shell;

/// What `--help` has no room for.
const BEHIND_CAUSEWAY_1: &str = r#".SH "EXIT STATUS"
0: done. 1: it ran and the answer is no: a check failed, nothing was found. 2: the command line or the configuration is
wrong. 3: the daemon could not be reached.
.SH FILES
.TP
\fI/etc/causeway/causeway.toml\fR
the configuration, causeway.toml(5)
.TP
\fI/var/spool/causeway\fR
mail that waits
.TP
\fI/var/log/causeway\fR
what became of each message; \fBcauseway trace\fR reads it
.SH "SEE ALSO"
causeway.toml(5), /usr/share/doc/causeway/operations.md
"#;

#[allow(dead_code, reason = "a test takes the rest of this file without it")]
fn main() -> io::Result<()> {
    let folder = std::env::args_os().nth(1).ok_or_else(|| io::Error::other("usage: manual FOLDER"))?;
    write(Path::new(&folder))
}

/// Writes `man/` and `completions/` in `folder`.
pub fn write(folder: &Path) -> io::Result<()> {
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    for folder in [&man, &completions] {
        // Pages of commands that are no more would be packed, too.
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir_all(folder)?;
    }
    clap_mangen::generate_to(causeway::cli::command(), &man)?;
    let first = man.join("causeway.1");
    let page = fs::read_to_string(&first)?;
    fs::write(&first, page + BEHIND_CAUSEWAY_1)?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    fs::write(man.join("causeway.toml.5"), manual_page(&fs::read_to_string(source)?))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut causeway::cli::command(), "causeway", &completions)?;
    }
    Ok(())
}

/// The configuration's page as man(7) has it.
pub fn manual_page(markdown: &str) -> String {
    let mut page = format!(
        ".TH causeway.toml 5 \"\" \"causeway {}\" \"File formats\"\n\
         .SH NAME\ncauseway.toml \\- configuration of the mail relay causeway(1)\n.SH DESCRIPTION\n",
        env!("CARGO_PKG_VERSION")
    );
    let mut lines = markdown.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with("# ") || line.is_empty() {
            continue;
        }
        if line.starts_with("```") {
            page.push_str(".PP\n.RS 4\n.nf\n");
            for line in lines.by_ref().take_while(|line| !line.starts_with("```")) {
                text_line(&mut page, &escaped(line));
            }
            page.push_str(".fi\n.RE\n");
        } else if let Some(title) = line.strip_prefix("### ") {
            let _ = writeln!(page, ".SS \"{}\"", escaped(&title.replace('`', "")));
        } else if let Some(title) = line.strip_prefix("## ") {
            let _ = writeln!(page, ".SH \"{}\"", escaped(&title.replace('`', "")));
        } else if line.starts_with('|') {
            let titles = cells(line);
            // The row of dashes.
            lines.next();
            while let Some(row) = lines.next_if(|line| line.starts_with('|')) {
                entry(&mut page, &titles, &cells(row));
            }
        } else {
            page.push_str(".PP\n");
            text_line(&mut page, &inline(line));
            while let Some(line) = lines.next_if(|line| is_text(line)) {
                text_line(&mut page, &inline(line));
            }
        }
    }
    page.push_str(".SH \"SEE ALSO\"\ncauseway(1)\n");
    page
}

/// Does it go on with the paragraph before it?
fn is_text(line: &str) -> bool {
    !line.is_empty() && !line.starts_with(['|', '#']) && !line.starts_with("```")
}

/// One row: its first cell stands out; then what it means, and below that the default. Other columns say what they are.
fn entry(page: &mut String, titles: &[String], row: &[String]) {
    let Some((key, rest)) = row.split_first() else { return };
    page.push_str(".TP\n");
    text_line(page, &inline(key));
    let mut told: Vec<_> = titles.iter().skip(1).zip(rest).filter(|(_, cell)| !cell.is_empty()).collect();
    told.sort_by_key(|(title, _)| *title == "default");
    let has_one_column = titles.len() == 2;
    for (number, (title, cell)) in told.iter().enumerate() {
        if number > 0 {
            page.push_str(".br\n");
        }
        match title.as_str() {
            "meaning" => text_line(page, &inline(cell)),
            _ if has_one_column => text_line(page, &inline(cell)),
            title => text_line(page, &format!("{}: {}", inline(title), inline(cell))),
        }
    }
    if told.is_empty() {
        page.push_str("\\&\n");
    }
}

/// The cells of a row of a table.
fn cells(row: &str) -> Vec<String> {
    row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// A line of text; one that begins with a control character would be taken for a request.
fn text_line(page: &mut String, line: &str) {
    if line.starts_with(['.', '\'']) {
        page.push_str("\\&");
    }
    page.push_str(line);
    page.push('\n');
}

/// Code in bold, links as their text, emphasis in italics.
fn inline(text: &str) -> String {
    let mut out = String::new();
    for (number, part) in text.split('`').enumerate() {
        if number % 2 == 1 {
            let _ = write!(out, "\\fB{}\\fR", escaped(part));
            continue;
        }
        for (number, part) in unlinked(part).split('*').enumerate() {
            match number % 2 {
                1 => {
                    let _ = write!(out, "\\fI{}\\fR", escaped(part));
                }
                _ => out.push_str(&escaped(part)),
            }
        }
    }
    out
}

/// Links without what they lead to: there is no page here to go to.
fn unlinked(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, (label, (_, after)))) = rest.split_once('[').and_then(|(before, link)| {
        link.split_once("](").and_then(|(label, to)| Some((before, (label, to.split_once(')')?))))
    }) {
        out.push_str(before);
        out.push_str(label);
        rest = after;
    }
    out + rest
}

/// Backslashes and the dashes of keys and options, which a reader may want to search for and copy.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}
