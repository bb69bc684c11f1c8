//! What is shipped: the Debian package's list of files, its scripts, units and first configuration, and what the container's
//! build is given. Nothing is built here; `scripts/package` and `docker build` do that.

#[path = "../../examples/manual.rs"]
#[allow(clippy::duplicate_mod)]
mod manual;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{PATIENCE, Scratch, causeway, run, said};
use causeway::config;
use jiff::Timestamp;
use nix::unistd::{Uid, User};
use toml::Value;

/// Where `scripts/package` has `examples/manual.rs` write.
const GENERATED: &str = "target/package/";
/// What the package's scripts make, beside what is in it.
const MADE: [&str; 4] = ["/var/spool/causeway", "/var/log/causeway", "/etc/causeway/certs", "/etc/causeway/secrets"];

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(source(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn manifest() -> Value {
    toml::from_str(&read("Cargo.toml")).unwrap()
}

/// Source, destination, mode.
fn assets() -> Vec<(String, String, String)> {
    let manifest = manifest();
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    assets.iter().map(|asset| (text(&asset[0]), text(&asset[1]), text(&asset[2]))).collect()
}

/// The files that a pattern means: only the last part of it may have stars.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().unwrap().to_str().unwrap();
    let Some((head, tail)) = name.split_once('*') else {
        return pattern.exists().then(|| pattern.to_owned()).into_iter().collect();
    };
    let Ok(entries) = fs::read_dir(pattern.parent().unwrap()) else { return Vec::new() };
    let fits = |name: &str| name.len() >= head.len() + tail.len() && name.starts_with(head) && name.ends_with(tail);
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap().to_str().is_some_and(fits)).collect()
}

/// Every path on the target that the package brings, with the file it comes from.
fn installed(scratch: &Scratch) -> Vec<(String, PathBuf)> {
    manual::write(scratch.path()).unwrap();
    let mut found = Vec::new();
    for (from, to, _) in assets() {
        if from.starts_with("target/release/") {
            found.push((format!("/{to}{}", from.trim_start_matches("target/release/")), PathBuf::new()));
            continue;
        }
        let pattern = match from.strip_prefix(GENERATED) {
            Some(generated) => scratch.file(generated),
            None => source(&from),
        };
        let files = matching(&pattern);
        assert!(!files.is_empty(), "the package wants {from}, and there is no such file");
        for file in files {
            let name = if to.ends_with('/') { file.file_name().unwrap().to_str().unwrap() } else { "" };
            found.push((format!("/{to}{name}"), file.clone()));
        }
    }
    found
}

#[test]
fn every_file_of_the_package_is_there() {
    let scratch = Scratch::new();
    let installed = installed(&scratch);
    let paths: BTreeSet<&str> = installed.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths.len(), installed.len(), "two files would land in one place");
    for expected in [
        "/usr/bin/causeway",
        "/etc/causeway/causeway.toml",
        "/usr/lib/systemd/system/causeway.service",
        "/usr/lib/systemd/system/causeway.socket",
        "/usr/share/man/man1/causeway.1",
        "/usr/share/man/man1/causeway-queue-list.1",
        "/usr/share/man/man5/causeway.toml.5",
        "/usr/share/doc/causeway/operations.md",
        "/usr/share/doc/causeway/examples/plain-relay.toml",
        "/usr/share/doc/causeway/examples/prometheus-alerts.yml",
        "/usr/share/doc/causeway/examples/renewal-hook",
    ] {
        assert!(paths.contains(expected), "{expected} is missing in {paths:#?}");
    }
    for (from, to, mode) in assets() {
        let program = to.starts_with("usr/bin/") || from.ends_with("renewal-hook");
        assert_eq!(mode, if program { "755" } else { "644" }, "{from}");
    }
}

/// Every path that a unit names is brought by the package or made by its scripts, and the first configuration writes
/// nowhere but where the unit lets it.
#[test]
fn units_scripts_and_configuration_speak_of_the_same_paths() {
    let scratch = Scratch::new();
    let installed = installed(&scratch);
    let postinst = read("packaging/debian/postinst");
    for made in MADE {
        assert!(
            postinst.lines().any(|line| line.trim_start().starts_with("folder ") && line.ends_with(made)),
            "{made}"
        );
    }
    let service = read("packaging/systemd/causeway.service");
    let values = |key: &str| -> Vec<&str> {
        let lines = service.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        lines.flat_map(str::split_whitespace).map(|value| value.trim_start_matches('-')).collect()
    };
    let writable = values("ReadWritePaths");
    for path in values("ExecStart").into_iter().filter(|word| word.starts_with("/")).chain(writable.clone()) {
        assert!(MADE.contains(&path) || installed.iter().any(|(there, _)| there == path), "nobody makes {path}");
    }
    for page in values("Documentation").iter().filter_map(|page| page.strip_prefix("man:")) {
        let page = page.replace('(', ".").replace(')', "");
        assert!(installed.iter().any(|(path, _)| path.ends_with(&format!("/{page}"))), "no page {page}");
    }
    let user = values("User").concat();
    assert!(postinst.contains(&format!("getent passwd {user} ")), "nobody makes the user {user}");
    let text = read("packaging/causeway.toml");
    let written: Value = toml::from_str(&text).unwrap();
    assert_eq!(written["user"].as_str(), Some(user.as_str()));
    for folder in [&written["spool"]["path"], &written["tracking"]["path"]] {
        assert!(writable.contains(&folder.as_str().unwrap()), "{folder} cannot be written in the unit");
    }
    let token = Path::new("/etc/causeway").join(written["admin"]["token_file"].as_str().unwrap());
    assert!(writable.contains(&token.parent().unwrap().to_str().unwrap()), "the token cannot be made");
    // What the comments send a reader to.
    assert!(text.contains("causeway.toml(5)") && text.contains("/usr/share/doc/causeway/operations.md."));
}

/// It is not started by the package; but whoever starts it unchanged opens nothing to anybody.
#[test]
fn the_first_configuration_is_good_and_relays_for_nobody() {
    let scratch = Scratch::new();
    let text = read("packaging/causeway.toml");
    // The package makes its user; here whoever runs the test must do.
    let user = User::from_uid(Uid::effective()).unwrap().unwrap().name;
    let file = scratch.write("causeway.toml", text.replace("user = \"causeway\"", &format!("user = {user:?}")));
    let checked = run(causeway().arg("-c").arg(&file).arg("check"), PATIENCE);
    assert!(checked.status.success(), "{}", said(&checked));
    let (config, problems) = config::check(&file, Timestamp::now());
    assert_eq!(problems.0.len(), 0, "not even a warning: {problems}");
    let config = config.unwrap();
    let doors = config.receive_connectors.iter().flat_map(|connector| connector.listen.clone());
    let doors: Vec<SocketAddr> = doors.collect();
    assert!(!doors.is_empty() && doors.iter().all(|door| door.ip().is_loopback() && door.port() > 1024), "{doors:?}");
    assert!(config.receive_connectors.iter().all(|connector| !connector.relay));
    assert!(config.accepted_domains.is_empty());
    assert!(config.admin.is_none_or(|admin| IpAddr::is_loopback(&admin.listen.ip())));
    for (origin, to) in [("internet", "erin@fabrikam.com"), ("internet", "root@mail.example.org")] {
        let explain = ["explain", "--origin", origin, "--from", "a@example.net", "--to", to];
        let output = run(causeway().arg("-c").arg(&file).args(explain), PATIENCE);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("550 5.7.1 Unable to relay"), "{}", said(&output));
    }
}

/// What stands in it as a comment is what an administrator takes the mark away from: that is a good configuration, too.
#[test]
fn what_the_first_configuration_proposes_is_good() {
    let scratch = Scratch::new();
    let root = scratch.authority();
    fs::create_dir(scratch.file("certs")).unwrap();
    scratch.issue(&root.intermediate("Issuer of the test"), "certs/mail.example.org", &["mail.example.org"]);
    scratch.write("recipients.csv", "address,type,target\njulie@contoso.com,on-premises,\n");
    let proposed = |line: &str| {
        let line = line.strip_prefix("# ")?;
        let is_key = line.split_once(" = ").is_some_and(|(key, _)| key.bytes().all(|byte| byte.is_ascii_lowercase()));
        (line.starts_with("[[") || is_key).then(|| line.to_owned())
    };
    let text = read("packaging/causeway.toml");
    let lines = text.lines().filter(|line| !line.starts_with("user = "));
    let text: Vec<String> = lines.map(|line| proposed(line).unwrap_or_else(|| line.to_owned())).collect();
    let file = scratch.write("causeway.toml", text.join("\n"));
    let mut check = causeway();
    check.env("SSL_CERT_FILE", scratch.file("ca.pem")).env_remove("SSL_CERT_DIR").arg("-c").arg(&file).arg("check");
    let checked = run(&mut check, PATIENCE);
    assert!(checked.status.success(), "{}", said(&checked));
    let summary = "2 receive connectors, 1 send connector, 1 accepted domain, 1 recipient";
    assert!(said(&checked).contains(summary) && !said(&checked).contains("warning"), "{}", said(&checked));
}

#[test]
fn the_scripts_are_sound_and_never_touch_mail() {
    for name in ["debian/postinst", "debian/prerm", "debian/postrm", "renewal-hook"] {
        let path = source(&format!("packaging/{name}"));
        assert!(fs::metadata(&path).unwrap().permissions().mode() & 0o111 == 0o111, "{name} cannot be run");
        let output = run(Command::new("sh").arg("-n").arg(&path), PATIENCE);
        assert!(output.status.success(), "{name}: {}", said(&output));
        let text = fs::read_to_string(&path).unwrap();
        let removes = |line: &&str| line.trim_start().starts_with("rm ") && line.contains("/var/spool");
        assert_eq!(text.lines().find(removes), None, "{name} removes mail");
    }
    // New: nothing is started or enabled; only what was there before is.
    let postinst = read("packaging/debian/postinst");
    assert!(!postinst.contains("deb-systemd-invoke start") && !postinst.contains("deb-systemd-invoke restart"));
    assert!(postinst.contains("if deb-systemd-helper debian-installed"));
    let version = manifest()["package"]["version"].as_str().unwrap().to_owned();
    let changelog = read("packaging/debian/changelog");
    assert!(changelog.starts_with(&format!("causeway ({version}-")), "the changelog does not know {version}");
}

/// A hook that leaves a key open, or half a pair, is worse than none.
#[test]
fn the_renewal_hook_puts_both_files_in_place_for_the_daemon_alone() {
    let scratch = Scratch::new();
    let group = nix::unistd::Group::from_gid(nix::unistd::Gid::effective()).unwrap().unwrap().name;
    let certs = scratch.file("certs");
    let lineage = scratch.file("live/mail.contoso.com");
    fs::create_dir_all(&certs).unwrap();
    fs::create_dir_all(&lineage).unwrap();
    let hook = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = Command::new(source("packaging/renewal-hook"));
        command.args(arguments).env("CAUSEWAY_CERTS", &certs).env("CAUSEWAY_GROUP", &group);
        run(command.envs(environment.iter().copied()), PATIENCE)
    };
    let live = lineage.to_str().unwrap();
    for turn in ["one", "two"] {
        fs::write(lineage.join("fullchain.pem"), format!("chain {turn}")).unwrap();
        fs::write(lineage.join("privkey.pem"), format!("key {turn}")).unwrap();
        let output = hook(&[], &[("RENEWED_LINEAGE", live)]);
        assert!(output.status.success(), "{}", said(&output));
        for (end, content) in [("crt", "chain"), ("key", "key")] {
            let file = certs.join(format!("mail.contoso.com.{end}"));
            assert_eq!(fs::read_to_string(&file).unwrap(), format!("{content} {turn}"));
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        }
    }
    assert_eq!(fs::read_dir(&certs).unwrap().count(), 2, "nothing else is left behind");
    // Another host's certificate, renewed by certbot: none of the relay's business.
    let other = scratch.file("live/www.contoso.com");
    fs::create_dir_all(&other).unwrap();
    let output = hook(&[], &[("RENEWED_LINEAGE", other.to_str().unwrap()), ("RENEWED_DOMAINS", "www.contoso.com")]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(fs::read_dir(&certs).unwrap().count(), 2);
    // acme.sh has put them there itself.
    fs::set_permissions(certs.join("mail.contoso.com.key"), PermissionsExt::from_mode(0o644)).unwrap();
    assert!(hook(&["mail.contoso.com"], &[]).status.success());
    let mode = fs::metadata(certs.join("mail.contoso.com.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
}

#[test]
fn the_manual_has_every_key_and_nothing_that_a_formatter_would_take_for_its_own() {
    let page = manual::manual_page(&read("docs/configuration.md"));
    for key in ["message_lifetime", "originator_org", "address_spaces", "token_file", "proxy_protocol"] {
        assert!(page.lines().any(|line| line == format!("\\fB{key}\\fR")), "{key}");
    }
    assert!(!page.contains("| ---") && !page.contains("```"), "a table or code was not understood");
    let requests = page.lines().filter(|line| line.starts_with('.')).map(|line| line.split(' ').next().unwrap());
    let known = [".TH", ".SH", ".SS", ".TP", ".PP", ".RS", ".RE", ".nf", ".fi", ".br"];
    requests.for_each(|request| assert!(known.contains(&request), "{request}"));
}

/// The sources of the container's build are exactly what its Dockerfile copies: enough for cargo to find every target of
/// the manifest, and for the compiler to find every file that the sources include.
#[test]
fn the_dockerfile_copies_what_the_build_needs() {
    let dockerfile = read("Dockerfile");
    // The second stage begins with the second FROM; what it copies is not there for the build.
    let (_, stages) = dockerfile.split_once("\nFROM ").unwrap();
    let (first, _) = stages.split_once("\nFROM ").unwrap();
    let copies = first.lines().filter_map(|line| line.strip_prefix("COPY "));
    let scratch = Scratch::new();
    let build = scratch.file("build");
    fs::create_dir(&build).unwrap();
    let ignored = read(".dockerignore");
    let mut copied = Vec::new();
    for words in copies.map(|line| line.split_whitespace().collect::<Vec<_>>()) {
        let (to, from) = words.split_last().unwrap();
        for from in from {
            assert!(!ignored.lines().any(|line| line == *from), "{from} is in .dockerignore");
            let to = if *to == "./" { build.join(from) } else { build.join(to) };
            let output = run(Command::new("cp").arg("-r").arg(source(from)).arg(&to), PATIENCE);
            assert!(output.status.success(), "{}", said(&output));
            copied.push(source(from));
        }
    }
    // Cargo reads the whole manifest, also for one program: a missing bench would end the build.
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--offline", "--locked", "--no-deps", "--format-version", "1"]);
    let output = run(cargo.current_dir(&build), PATIENCE);
    assert!(output.status.success(), "{}", said(&output));

    let mut folders = vec![source("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
                continue;
            }
            if entry.extension().is_none_or(|end| end != "rs") {
                continue;
            }
            let text = fs::read_to_string(&entry).unwrap();
            let included = ["include_str!(", "include_bytes!(", "#[path = "]
                .iter()
                .flat_map(|start| text.split(start).skip(1))
                .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next());
            for file in included {
                let file = folder.join(file).canonicalize().unwrap_or_else(|error| panic!("{file}: {error}"));
                assert!(copied.iter().any(|there| file.starts_with(there)), "{} is not copied", file.display());
            }
        }
    }
    assert!(dockerfile.contains("COPY LICENSE "), "who passes the image on passes the licence on");
}
