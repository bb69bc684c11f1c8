//! `causeway directory` as an administrator meets it, from the Exchange export to a recipient that is shown.

use std::fmt::Write as _;
use std::time::Duration;

use crate::common::{PATIENCE, Scratch, causeway, run};
use serde_json::Value;

const CONFIG: &str = r#"hostname = "mail.contoso.com"

[spool]
path = "spool"

[hybrid]
side = "on-premises"
on_premises = "to-on-premises"
cloud = "to-cloud"
routing_domain = "contoso.mail.onmicrosoft.com"
disagreement_grace = "0s"

[[accepted_domain]]
name = "contoso.com"

[[directory]]
path = "recipients.csv"

[[receive_connector]]
name = "internet"
listen = ["127.0.0.1:0"]
origin = "internet"
tls = "off"

[[receive_connector]]
name = "servers"
listen = ["127.0.0.1:0"]
remote_ips = ["127.0.0.2/32"]
origin = "on-premises"
tls = "off"

[[send_connector]]
name = "to-on-premises"
smart_hosts = ["127.0.0.1:2525"]
tls = "off"

[[send_connector]]
name = "to-cloud"
smart_hosts = ["127.0.0.1:2526"]
tls = "off"

[[send_connector]]
name = "to-internet"
address_spaces = ["*"]
tls = "opportunistic"
"#;

/// Exit status, standard output, standard error.
fn directory(scratch: &Scratch, arguments: &[&str], limit: Duration) -> (Option<i32>, String, String) {
    scratch.write("causeway.toml", CONFIG);
    let mut command = causeway();
    command.current_dir(scratch.path()).arg("-c").arg("causeway.toml").arg("directory").args(arguments);
    let output = run(&mut command, limit);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// As Windows PowerShell writes it.
const EXPORT: &str = "#TYPE Selected.Microsoft.Exchange.Data.Directory.Management.ReducedRecipient\r\n\
    \"Name\",\"PrimarySmtpAddress\",\"EmailAddresses\",\"RecipientTypeDetails\",\"ExternalEmailAddress\",\"Members\"\r\n\
    \"Julie\",\"julie@contoso.com\",\"SMTP:julie@contoso.com smtp:info@contoso.com\",\"UserMailbox\",\"\",\"\"\r\n\
    \"David\",\"david@contoso.com\",\"smtp:david@contoso.mail.onmicrosoft.com SMTP:david@contoso.com\",\"RemoteUserMailbox\",\"SMTP:david@contoso.mail.onmicrosoft.com\",\"\"\r\n\
    \"Kate\",\"kate@contoso.com\",\"SMTP:kate@contoso.com\",\"MailContact\",\"SMTP:kate@tailspintoys.com\",\"\"\r\n\
    \"Sales\",\"sales@contoso.com\",\"SMTP:sales@contoso.com\",\"MailUniversalDistributionGroup\",\"\",\"Julie;David\"\r\n\
    \"All\",\"all@contoso.com\",\"SMTP:all@contoso.com\",\"DynamicDistributionGroup\",\"\",\"\"\r\n";

#[test]
fn from_an_exchange_export_to_a_recipient_that_is_shown() {
    let scratch = Scratch::new();
    let bytes: Vec<u8> = std::iter::once(0xfeff).chain(EXPORT.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    scratch.write("export.csv", bytes);
    let (status, out, errors) = directory(&scratch, &["import", "export.csv", "-o", "recipients.csv"], PATIENCE);
    assert_eq!((status, out.as_str()), (Some(0), ""), "{errors}");
    assert!(errors.contains("export.csv:7: left out: all@contoso.com: a dynamic group"), "{errors}");
    assert!(errors.contains("5 lines (1 on-premises, 1 cloud, 1 forward, 1 group, 1 alias), 1 left out"), "{errors}");
    let csv = std::fs::read_to_string(scratch.file("recipients.csv")).unwrap();
    assert_eq!(
        csv,
        "address,type,target\njulie@contoso.com,on-premises,\ndavid@contoso.com,cloud,david@contoso.mail.onmicrosoft.com\n\
         kate@contoso.com,forward,kate@tailspintoys.com\nsales@contoso.com,group,julie@contoso.com david@contoso.com\n\
         info@contoso.com,alias,julie@contoso.com\n"
    );
    let (status, out, errors) = directory(&scratch, &["import", "export.csv"], PATIENCE);
    assert_eq!((status, out), (Some(0), csv), "{errors}");

    let (status, out, errors) = directory(&scratch, &["check"], PATIENCE);
    assert_eq!((status, out.as_str()), (Some(0), "5 recipients: 0 errors, 0 warnings\n"), "{errors}");

    let (status, out, errors) = directory(&scratch, &["show", "Julie+news@contoso.com"], PATIENCE);
    assert_eq!(status, Some(0), "{errors}");
    assert_eq!(
        out,
        "Julie+news@contoso.com\n    found in recipients.csv, line 2 without its tag: an on-premises mailbox\n\n\
         mail from internet (receive connector internet)\n    -> to-on-premises, 127.0.0.1:2525, as Julie+news@contoso.com\n\n\
         mail from on-premises (receive connector servers)\n    -> to-on-premises, 127.0.0.1:2525, as Julie+news@contoso.com\n\n\
         named by\n    group sales@contoso.com (recipients.csv, line 5)\n    alias info@contoso.com (recipients.csv, line 6)\n"
    );

    let (status, out, _) = directory(&scratch, &["show", "sales@contoso.com", "--json"], PATIENCE);
    assert_eq!(status, Some(0));
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["found"]["line"], 5);
    assert_eq!(json["found"]["entry"]["type"], "group");
    let routes = json["mail"][0]["routes"].as_array().unwrap();
    assert_eq!((routes[0]["via"].as_str(), routes[1]["via"].as_str()), (Some("to-on-premises"), Some("to-cloud")));
    assert_eq!(routes[1]["as"], "david@contoso.mail.onmicrosoft.com");

    let (status, out, _) = directory(&scratch, &["show", "david@contoso.mail.onmicrosoft.com"], PATIENCE);
    assert_eq!(status, Some(0), "{out}");
    assert!(
        out.contains("found in recipients.csv, line 3, as the hybrid routing address of david@contoso.com: a cloud"),
        "{out}"
    );

    let (status, out, _) = directory(&scratch, &["show", "nobody@contoso.com"], PATIENCE);
    assert_eq!(status, Some(1));
    assert!(out.contains("not in the directory") && out.contains("refused: 550 5.1.1"), "{out}");
    assert_eq!(directory(&scratch, &["show", "nobody"], PATIENCE).0, Some(2));
}

#[test]
fn check_says_every_fault_and_how_many() {
    let scratch = Scratch::new();
    scratch.write(
        "recipients.csv",
        "address,type,target\njulie@contoso.com,on-premises,\nnobody,cloud,\njulie@contoso.com,cloud,\n\
         a@contoso.com,forward,b@contoso.com\nb@contoso.com,forward,a@contoso.com\nx@fabrikam.com,cloud,\n",
    );
    let (status, out, errors) = directory(&scratch, &["check"], PATIENCE);
    assert_eq!(status, Some(1), "{errors}");
    let lines: Vec<_> =
        out.lines().map(|line| line.split_once("recipients.csv").map_or(line, |(_, rest)| rest)).collect();
    assert_eq!(
        lines,
        [
            ":3:1: address \"nobody\": the domain is missing; the line is skipped",
            ":4:1: julie@contoso.com is a cloud mailbox here and an on-premises mailbox in line 2; line 2 holds",
            ":5:1: a@contoso.com leads back to itself: a@contoso.com -> b@contoso.com -> a@contoso.com",
            ":7:1: x@fabrikam.com: fabrikam.com is no accepted domain, so mail from the Internet for it is refused",
            "4 recipients: 3 errors, 1 warning",
        ]
    );
    let (status, out, _) = directory(&scratch, &["check", "--json"], PATIENCE);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, &json["errors"], &json["warnings"]), (Some(1), &3.into(), &1.into()));
    assert_eq!(json["findings"][1]["line"], 4);
}

#[test]
fn what_cannot_be_imported_leaves_the_old_file() {
    let scratch = Scratch::new();
    scratch.write("recipients.csv", "address,type,target\njulie@contoso.com,on-premises,\n");
    let before = std::fs::read(scratch.file("recipients.csv")).unwrap();
    for (export, expected_status, expected) in [
        ("Name,RecipientTypeDetails,PrimarySmtpAddress\nx,PublicFolder,x@contoso.com\n", 1, "0 lines"),
        ("address,type,target\n", 2, "RecipientTypeDetails"),
    ] {
        scratch.write("export.csv", export);
        let (status, _, errors) = directory(&scratch, &["import", "export.csv", "-o", "recipients.csv"], PATIENCE);
        assert_eq!(status, Some(expected_status), "{errors}");
        assert!(errors.contains(expected), "{errors}");
        assert_eq!(std::fs::read(scratch.file("recipients.csv")).unwrap(), before);
    }
    assert_eq!(directory(&scratch, &["import", "gone.csv"], PATIENCE).0, Some(2));
}

const HEAD: &str = "Name,PrimarySmtpAddress,EmailAddresses,RecipientTypeDetails,ExternalEmailAddress,Members\n";

#[test]
fn import_finds_what_check_would_and_writes_it_all_the_same() {
    let scratch = Scratch::new();
    // Whatever is wrong elsewhere, its domains are known.
    scratch.write("export.csv", format!(
        "sep=,\n{HEAD}Ann,ann@gmail.example,SMTP:ann@gmail.example smtp:ann@contoso.com,UserMailbox,,\n\
         Bob,bob@fabrikam.com,SMTP:bob@fabrikam.com smtp:bob@contoso.com smtp:bob@old.example,MailContact,bob@fabrikam.com,\n\
         David,david@contoso.com,SMTP:david@contoso.com smtp:d@contoso.mail.onmicrosoft.com,RemoteUserMailbox,,\n\
         Team,team@contoso.com,,MailUniversalDistributionGroup,,ann@gmail.example gone@contoso.com bob@fabrikam.com\n"
    ));
    let csv = "address,type,target\nann@gmail.example,on-premises,\ndavid@contoso.com,cloud,d@contoso.mail.onmicrosoft.com\n\
               team@contoso.com,group,ann@gmail.example gone@contoso.com bob@fabrikam.com\n\
               bob@contoso.com,forward,bob@fabrikam.com\nann@contoso.com,alias,ann@gmail.example\n";
    for output in [&["import", "export.csv"][..], &["import", "export.csv", "-o", "recipients.csv"]] {
        let (status, out, errors) = directory(&scratch, output, PATIENCE);
        assert_eq!(status, Some(1), "{errors}");
        assert!(
            errors.contains("team@contoso.com: group with gone@contoso.com, which is not in the directory"),
            "{errors}"
        );
        assert!(errors.contains(":2:1: ann@gmail.example: gmail.example is no accepted domain"), "{errors}");
        assert!(errors.contains("1 error in what is written"), "{errors}");
        match output.len() {
            2 => assert_eq!(out, csv),
            _ => assert_eq!(std::fs::read_to_string(scratch.file("recipients.csv")).unwrap(), csv),
        }
    }
    let (status, out, errors) = directory(&scratch, &["check"], PATIENCE);
    assert_eq!(status, Some(1), "{errors}");
    assert!(out.ends_with("5 recipients: 1 error, 1 warning\n"), "{out}");
    // What she gets, from strangers and from inside.
    let (status, out, errors) = directory(&scratch, &["show", "ann@gmail.example"], PATIENCE);
    assert_eq!(status, Some(0), "{errors}");
    assert!(out.contains("mail from internet (receive connector internet)\n    refused: 550 5.7.1"), "{out}");
    assert!(out.contains("mail from on-premises (receive connector servers)\n    -> to-on-premises, 127.0.0.1:2525, as ann@contoso.com"), "{out}");

    // Without a configuration only what shows by itself is found.
    std::fs::create_dir(scratch.file("alone")).unwrap();
    scratch.write("alone/export.csv", std::fs::read(scratch.file("export.csv")).unwrap());
    let mut command = causeway();
    command.current_dir(scratch.file("alone")).args(["-c", "gone.toml", "directory", "import", "export.csv"]);
    let output = run(&mut command, PATIENCE);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{errors}");
    assert!(errors.contains("gone.toml cannot be read") && !errors.contains("accepted domain,"), "{errors}");
    let written = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        written,
        csv.replace("ann@contoso.com,alias", "bob@old.example,forward,bob@fabrikam.com\nann@contoso.com,alias")
    );
}

#[test]
fn import_replaces_what_it_wrote_and_nothing_else() {
    let scratch = Scratch::new();
    let import = |export: String, more: &[&str]| {
        scratch.write("export.csv", format!("{HEAD}{export}"));
        let (status, _, errors) =
            directory(&scratch, &[&["import", "export.csv", "-o", "recipients.csv"], more].concat(), PATIENCE);
        (status, errors)
    };
    let read = |name: &str| std::fs::read_to_string(scratch.file(name)).ok();
    let person = |name: &str| {
        format!("{name},{name}@contoso.com,SMTP:{name}@contoso.com smtp:{name}.x@contoso.com,UserMailbox,,\n")
    };
    let lines = |names: &[&str]| {
        let owners = names.iter().map(|name| format!("{name}@contoso.com,on-premises,\n"));
        let aliases = names.iter().map(|name| format!("{name}.x@contoso.com,alias,{name}@contoso.com\n"));
        format!("address,type,target\n{}", owners.chain(aliases).collect::<String>())
    };
    assert_eq!(import(person("a") + &person("b"), &[]).0, Some(0));
    assert_eq!((read("recipients.csv"), read("recipients.csv.bak")), (Some(lines(&["a", "b"])), None));
    // As it was: not even touched.
    let (status, errors) = import(person("a") + &person("b"), &[]);
    assert_eq!((status, read("recipients.csv.bak")), (Some(0), None), "{errors}");
    assert!(errors.contains("recipients.csv is as it was"), "{errors}");

    // The routine job, with its file's rights kept, and by a link.
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(scratch.file("recipients.csv"), std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::rename(scratch.file("recipients.csv"), scratch.file("real.csv")).unwrap();
    std::os::unix::fs::symlink("real.csv", scratch.file("recipients.csv")).unwrap();
    let (status, errors) = import(person("b") + &person("c"), &[]);
    assert_eq!(status, Some(0), "{errors}");
    assert!(errors.contains("2 recipients are no longer in it: a@contoso.com, a.x@contoso.com\n"), "{errors}");
    assert_eq!((read("real.csv"), read("real.csv.bak")), (Some(lines(&["b", "c"])), Some(lines(&["a", "b"]))));
    assert!(std::fs::symlink_metadata(scratch.file("recipients.csv")).unwrap().is_symlink());
    let mode = std::fs::metadata(scratch.file("real.csv")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);

    // What somebody added would be lost.
    let edited = lines(&["b", "c"]) + "all@contoso.com,on-premises,\n";
    scratch.write("real.csv", &edited);
    let (status, errors) = import(person("c"), &[]);
    assert_eq!((status, read("real.csv")), (Some(1), Some(edited.clone())), "{errors}");
    assert!(
        errors.contains("real.csv:6: all@contoso.com,on-premises,\n") && errors.contains("[[directory]]"),
        "{errors}"
    );
    let (status, errors) = import(person("c"), &["--force"]);
    assert_eq!(
        (status, read("real.csv"), read("real.csv.bak")),
        (Some(0), Some(lines(&["c"])), Some(edited)),
        "{errors}"
    );

    // What is no recipient file at all, such as the export.
    let (status, _, errors) = directory(&scratch, &["import", "export.csv", "-o", "export.csv"], PATIENCE);
    assert_eq!((status, read("export.csv")), (Some(1), Some(format!("{HEAD}{}", person("c")))), "{errors}");
    assert!(errors.contains("export.csv is no recipient file"), "{errors}");
    let (status, _, errors) = directory(&scratch, &["import", "export.csv", "-o", "causeway.toml"], PATIENCE);
    assert_eq!((status, read("causeway.toml").as_deref()), (Some(1), Some(CONFIG)), "{errors}");
    assert_eq!(directory(&scratch, &["import", "export.csv", "-o", "."], PATIENCE).0, Some(1));
    assert_eq!(directory(&scratch, &["import", "export.csv", "--force"], PATIENCE).0, Some(2));
    let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".new")), "{left:?}");
}

/// A large organization; this build is not optimized, a release needs a few seconds for ten times as many.
#[test]
fn a_hundred_thousand_lines_are_checked_while_one_waits() {
    let scratch = Scratch::new();
    let mut csv = String::from("address,type,target\n");
    for number in 0..100_000_u32 {
        match number % 5 {
            0..3 => writeln!(csv, "user{number}@contoso.com,on-premises,"),
            3 => writeln!(csv, "user{number}@contoso.com,cloud,"),
            _ => writeln!(csv, "user{number}@contoso.com,alias,user{}@contoso.com", number - 1),
        }
        .unwrap();
    }
    csv += "last@contoso.com,alias,user4@contoso.com\nuser77@contoso.com,cloud,\n";
    scratch.write("recipients.csv", csv);
    let (status, out, errors) = directory(&scratch, &["check"], Duration::from_secs(60));
    assert_eq!(status, Some(1), "{errors}");
    assert!(
        out.contains(":100003:1: user77@contoso.com is a cloud mailbox here and an on-premises mailbox in line 79"),
        "{out}"
    );
    assert!(out.ends_with("100001 recipients: 1 error, 0 warnings\n"), "{out}");
}
