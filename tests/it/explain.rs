//! `causeway explain` as its reader meets it: the program itself, its exit status, and what a pipe gets.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, Scratch, causeway, run};

const CONFIG: &str = r#"
hostname = "mail.contoso.com"
[spool]
path = "spool"
[hybrid]
side = "on-premises"
on_premises = "to-on-premises"
cloud = "to-cloud"
routing_domain = "contoso.mail.onmicrosoft.com"
[[accepted_domain]]
name = "contoso.com"
[[directory]]
kind = "file"
path = "recipients.csv"
[[receive_connector]]
name = "internet"
listen = ["127.0.0.1:0"]
origin = "internet"
tls = "off"
[[send_connector]]
name = "to-on-premises"
smart_hosts = ["mail.inside.contoso.com"]
tls = "encrypt"
[[send_connector]]
name = "to-cloud"
smart_hosts = ["contoso-com.mail.protection.outlook.com"]
tls = "encrypt"
[[send_connector]]
name = "to-internet"
address_spaces = ["*"]
tls = "opportunistic"
"#;

/// Exit status, standard output and standard error.
fn explain(scratch: &Scratch, arguments: &[&str]) -> (i32, String, String) {
    let arguments = ["-c", "here.toml", "explain"].iter().chain(arguments);
    let output = run(causeway().current_dir(scratch.path()).args(arguments), PATIENCE);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// This many mailboxes, every `moved`th of them elsewhere than it is with another `moved`.
fn directory(mailboxes: usize, moved: usize) -> String {
    let mut text = String::from("address,type,target\n");
    for number in 0..mailboxes {
        let kind = if number.is_multiple_of(moved) { "cloud" } else { "on-premises" };
        writeln!(text, "user{number}@contoso.com,{kind},").unwrap();
    }
    text
}

#[test]
fn what_it_answers_and_with_which_exit_status() {
    let scratch = Scratch::new();
    scratch.write("here.toml", CONFIG);
    scratch.write("there.toml", CONFIG.replace("[[accepted_domain]]", "internet = \"cloud\"\n[[accepted_domain]]"));
    scratch.write(
        "two.toml",
        CONFIG.replace(
            "[[receive_connector]]",
            "[[directory]]\nkind = \"file\"\npath = \"b.csv\"\n[[receive_connector]]",
        ),
    );
    scratch.write("faulty.toml", CONFIG.replace("encrypt", "sometimes"));
    scratch.write("recipients.csv", directory(6, 3));
    scratch.write("b.csv", directory(1, 1));
    scratch.write("tomorrow.csv", directory(6, 2));
    scratch.write("no-header.csv", "user1@contoso.com,cloud,\n");
    scratch.write("list.txt", "user2@contoso.com\nnobody\nuser1@contoso.com\n");
    scratch.write("empty.txt", "\n");
    let to = ["--from", "erin@fabrikam.com", "--to", "user0@contoso.com"];
    for (arguments, status, out, err) in [
        (
            &["--against", "tomorrow.csv"][..],
            1,
            "by tomorrow.csv, 3 of 6 recipients go another way\n       2  on-premises -> cloud\n       1  cloud -> on-premises\n",
            "",
        ),
        (&["--against", "recipients.csv"], 0, "nothing differs by recipients.csv: 6 recipients\n", ""),
        (&["--against", "there.toml"], 0, "nothing differs by there.toml: 6 recipients\n", ""),
        // No connector has that origin: nobody comes in by either, and that is no difference.
        (&["--against", "there.toml", "--origin", "cloud"], 0, "nothing differs", ""),
        // A directory of lower rank that knows nobody else.
        (&["--against", "two.toml"], 0, "nothing differs by two.toml: 6 recipients\n", ""),
        (
            &["--recipients", "list.txt", "--against", "tomorrow.csv"],
            1,
            "1 of 2 recipients go another way\n       1  on-premises -> cloud\n\non-premises -> cloud: 1 recipient\n    user2@contoso.com\n",
            "causeway: list.txt:2: address \"nobody\": the domain is missing; the line is skipped\n",
        ),
        (&["--recipients", "empty.txt", "--against", "tomorrow.csv"], 2, "", "empty.txt: there is no address in it"),
        (&["--recipients", "gone.txt", "--against", "tomorrow.csv"], 2, "", "gone.txt: No such file"),
        (&["--recipients", "list.txt"], 2, "", "--against"),
        (&["--against", "no-header.csv"], 2, "", "no-header.csv: line 1: expected the header line"),
        (&["--against", "faulty.toml"], 2, "", "faulty.toml:23:7"),
        (&["--from", "a@b.example"], 2, "", "--to"),
        (
            &["--to", "user1@contoso.com"],
            0,
            "without --from it is explained as a report\nfrom <>\n    comes in by receive connector \"internet\"",
            "",
        ),
        (&[&to[..], &["--origin", "partner"]].concat(), 2, "", "no receive connector has the origin"),
        (&["--help"], 0, "Exit status: 0 every recipient would be taken", ""),
    ] {
        let (code, stdout, stderr) = explain(&scratch, arguments);
        assert_eq!(code, status, "{arguments:?}: {stdout}{stderr}");
        assert!(stdout.contains(out), "{arguments:?}: {stdout}");
        assert!(stderr.contains(err), "{arguments:?}: {stderr}");
        assert!(err.is_empty() <= stderr.is_empty(), "{arguments:?}: a pipe hears of no progress: {stderr}");
    }
    // Of several directories the one of that name is replaced; without such a one nobody can say which.
    scratch.write(
        "here.toml",
        CONFIG.replace("recipients.csv\"", "recipients.csv\"\n[[directory]]\nkind = \"file\"\npath = \"b.csv\""),
    );
    let (code, _, stderr) = explain(&scratch, &["--against", "tomorrow.csv"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("the configuration has 2 directories"), "{stderr}");
    std::fs::create_dir(scratch.file("next")).unwrap();
    scratch.write("next/recipients.csv", directory(6, 2));
    let (code, stdout, _) = explain(&scratch, &["--against", "next/recipients.csv"]);
    assert_eq!(code, 1);
    assert!(stdout.starts_with("by next/recipients.csv, 3 of 6 recipients go another way\n"), "{stdout}");
    scratch.write("here.toml", CONFIG);

    let (code, stdout, _) = explain(&scratch, &[&to[..], &["--against", "tomorrow.csv"]].concat());
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.contains("\n    -> to-cloud, contoso-com.mail.protection.outlook.com:25\n"), "{stdout}");
    assert!(stdout.ends_with("\nby tomorrow.csv\n    nothing differs\n"), "{stdout}");
}

/// A directory of a hundred thousand, and another version of it. Some seconds, in a build that is not optimized, on a busy
/// machine.
#[test]
fn a_hundred_thousand_recipients_take_seconds() {
    const MAILBOXES: usize = 100_000;
    let scratch = Scratch::new();
    scratch.write("here.toml", CONFIG);
    scratch.write("recipients.csv", directory(MAILBOXES, 2));
    scratch.write("tomorrow.csv", directory(MAILBOXES, 4));
    let began = Instant::now();
    let (code, stdout, stderr) =
        explain(&scratch, &["--recipients", "recipients.csv", "--against", "tomorrow.csv", "--json"]);
    let took = began.elapsed();
    assert_eq!((code, stderr.as_str()), (1, ""));
    let answer: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&answer["recipients"], &answer["changed"]), (&100_000.into(), &25_000.into()));
    assert_eq!(answer["changes"][0]["change"], "cloud -> on-premises");
    assert_eq!(answer["changes"][0]["recipients"][0]["address"], "user2@contoso.com");
    println!("{MAILBOXES} recipients by two directories: {took:.1?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
}
