//! What documents name is there: files and modules move, and lists of them that are kept by
//! hand do not.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The most columns of a line of Rust; rustfmt leaves macros and long strings alone.
const COLUMNS: usize = 100;
/// What a path may end in to be taken for one.
const ENDINGS: [&str; 3] = [".rs", ".md", ".toml"];
/// The packages that are published.
const LIBRARIES: [&str; 5] =
    ["ram-block", "memory-region", "kvm-accel", "migration-ram", "display-vga"];
const UNSAFE_HEADING: &str = "# Where the unsafe code is";

/// Every file of the workspace, by its path from the root with `/` between parts.
struct Workspace {
    root: PathBuf,
    files: BTreeSet<String>,
}

impl Workspace {
    fn new() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut files = BTreeSet::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(root.join(&folder)).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                let path =
                    if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
                // Build products, and what git and others keep there.
                let is_foreign = name == "target" || name.starts_with('.') && name != ".ci";
                match entry.file_type().unwrap().is_dir() {
                    true if is_foreign => {}
                    true => folders.push(path),
                    false => drop(files.insert(path)),
                }
            }
        }
        Self { root, files }
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    fn with_ending<'a>(&'a self, ending: &'a str) -> impl Iterator<Item = &'a String> {
        self.files.iter().filter(move |file| file.ends_with(ending))
    }

    /// Whether a document of `package` (none: of the workspace) may call a file `path`: that is
    /// the path from the root, or the last parts of one in the package.
    fn has(&self, path: &str, package: Option<&str>) -> bool {
        let path = path.trim_start_matches("./").trim_start_matches("../");
        let within = |file: &str| package.is_none_or(|package| package_of(file) == Some(package));
        self.files.contains(path)
            || self.files.iter().any(|file| {
                within(file) && file.strip_suffix(path).is_some_and(|rest| rest.ends_with('/'))
            })
    }

    fn has_folder(&self, path: &str) -> bool {
        let (inside, anywhere) = (format!("{path}/"), format!("/{path}/"));
        let is_in = |file: &String| {
            let is_it = file.strip_suffix(path).is_some_and(|rest| rest.ends_with('/'));
            is_it || file.starts_with(&inside) || file.contains(&anywhere)
        };
        self.files.iter().any(is_in) || self.files.contains(path)
    }

    /// The modules that opt in to unsafe code, but for tests.
    fn unsafe_modules(&self) -> BTreeSet<String> {
        let opts_in = |text: &str| attributes(text).any(|attribute| allows_unsafe(&attribute));
        let sources = self.with_ending(".rs").filter(|file| file.contains("/src/"));
        let shipped =
            sources.filter(|file| !file.ends_with("tests.rs") && !file.contains("/tests/"));
        shipped.filter(|file| opts_in(&self.read(file))).cloned().collect()
    }
}

/// The attributes of a Rust file, each on one line without blanks.
fn attributes(text: &str) -> impl Iterator<Item = String> {
    let starts = text.match_indices('#').filter(|(at, _)| {
        let line = text[..*at].rsplit('\n').next().unwrap_or_default();
        // Not within a comment, nor a text.
        !line.contains("//") && !line.contains('"')
    });
    starts.filter_map(|(at, _)| {
        let rest = text[at + 1..].trim_start_matches('!');
        let mut depth = 0;
        let end = rest.find(|c: char| {
            depth += i32::from(c == '[') - i32::from(c == ']');
            depth <= 0
        });
        let inside = rest[..end?].strip_prefix('[')?;
        Some(inside.split_whitespace().collect())
    })
}

/// Whether an attribute allows unsafe code, with other lints or by itself.
fn allows_unsafe(attribute: &str) -> bool {
    let mut levels = attribute.match_indices("unsafe_code").map(|(at, _)| {
        let before = attribute[..at].rsplit_once('(').map_or("", |(before, _)| before);
        before.rsplit(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default()
    });
    levels.any(|level| ["allow", "expect", "warn"].contains(&level))
}

/// The folder of the package that a file belongs to.
fn package_of(file: &str) -> Option<&str> {
    file.split_once('/').map(|(package, _)| package).filter(|package| *package != "docs")
}

/// `x{y,z}` as `xy` and `xz`.
fn expanded(path: &str) -> Vec<String> {
    let parts = path.split_once('{').and_then(|(before, rest)| {
        let (choices, after) = rest.split_once('}')?;
        Some((before, choices, after))
    });
    match parts {
        Some((before, choices, after)) => {
            let choices = choices.split(',');
            choices.flat_map(|choice| expanded(&format!("{before}{choice}{after}"))).collect()
        }
        None => vec![path.to_owned()],
    }
}

/// What looks like the path of a file of ours in a piece of text.
fn paths(text: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-./{},:".contains(c);
    let words = text.split(|c: char| !is_part(c)).filter(|word| !word.contains("://"));
    // Of a list, the commas outside of braces part its members.
    let words = words.flat_map(|word| {
        let mut depth = 0;
        word.split(move |c: char| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ':' || c == ',' && depth == 0
        })
    });
    let words = words.map(|word| word.trim_end_matches(['.', ',']));
    let is_file = |word: &&str| {
        let stem = ENDINGS.iter().find_map(|ending| word.strip_suffix(ending));
        // An ending by itself, and a path from the root of the file system, are no file of ours.
        stem.is_some_and(|stem| !stem.is_empty() && !stem.ends_with('/')) && !word.starts_with('/')
    };
    words.filter(is_file).flat_map(expanded).collect()
}

/// What looks like the path of a folder of ours, or of a file with any ending, from the root or
/// from a package: in backticks, with a slash.
fn folders(line: &str) -> Vec<String> {
    const FIRST: [&str; 10] = [
        ".ci",
        "ram-block",
        "memory-region",
        "kvm-accel",
        "migration-ram",
        "display-vga",
        "tests",
        "src",
        "benches",
        "examples",
    ];
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-./{},".contains(c);
    let spans = spans(line).into_iter().filter(|span| span.chars().all(is_part));
    let ours =
        spans.filter(|span| span.split_once('/').is_some_and(|(first, _)| FIRST.contains(&first)));
    ours.flat_map(|span| expanded(span.trim_end_matches('/'))).collect()
}

/// The folder of a kind of target, and its name, that cargo is told by `--example` and the like.
fn targets(line: &str) -> Vec<(&'static str, String)> {
    let words: Vec<&str> = line.split(|c: char| c.is_whitespace() || "`()".contains(c)).collect();
    let named = words.windows(2).filter_map(|pair| {
        let kind = match pair[0] {
            "--example" => "examples",
            "--bench" => "benches",
            "--test" => "tests",
            _ => return None,
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let name: String = pair[1].chars().take_while(|c| is_name(*c)).collect();
        (!name.is_empty() && !name.chars().all(char::is_uppercase)).then_some((kind, name))
    });
    named.collect()
}

/// The lines of a Rust file's documentation comments, with their numbers.
fn documentation(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).filter_map(|(number, line)| {
        let line = line.trim_start();
        let text = line.strip_prefix("//!").or_else(|| line.strip_prefix("///"))?;
        Some((number, text))
    })
}

/// Whether a line of `file` includes a file from above its package's folder.
fn leads_out_of_package(file: &str, line: &str) -> bool {
    const INCLUSIONS: [&str; 3] = ["#[path = \"", "include_str!(\"", "include_bytes!(\""];
    let included = INCLUSIONS.iter().filter_map(|inclusion| line.split(inclusion).nth(1));
    let mut paths = included.filter_map(|rest| rest.split('"').next());
    // The first `/` follows the package's name.
    let folders = file.matches('/').count() - 1;
    paths.any(|path| path.matches("../").count() > folders)
}

/// What stands in backticks.
fn spans(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// `ram-block/src/content/zero_scan.rs` as `content::zero_scan`.
fn module_name(file: &str) -> String {
    let (_, path) = file.split_once("/src/").unwrap_or(("", file));
    path.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::")
}

#[test]
fn every_file_that_a_document_names_exists() {
    let workspace = Workspace::new();
    let mut missing = Vec::new();
    for file in workspace.with_ending(".md") {
        for (number, line) in (1..).zip(workspace.read(file).lines()) {
            let named = paths(line).into_iter();
            let gone = named.filter(|path| !workspace.has(path, None));
            missing.extend(gone.map(|path| format!("{file}:{number}: {path}")));
        }
    }
    for file in workspace.with_ending(".rs") {
        for (number, line) in documentation(&workspace.read(file)) {
            let named = paths(line).into_iter();
            let gone = named.filter(|path| !workspace.has(path, package_of(file)));
            missing.extend(gone.map(|path| format!("{file}:{number}: {path}")));
        }
    }
    assert!(missing.is_empty(), "these are named and not there:\n{}", missing.join("\n"));
}

/// Folders in backticks, as `ram-block/src` is, and what cargo is told to build.
#[test]
fn every_folder_and_target_that_a_document_names_exists() {
    let workspace = Workspace::new();
    let mut missing = Vec::new();
    let mut check = |place: String, line: &str| {
        let gone = folders(line).into_iter().filter(|folder| !workspace.has_folder(folder));
        missing.extend(gone.map(|folder| format!("{place}: {folder}")));
        let gone = targets(line).into_iter().filter(|(kind, name)| {
            let ends = [format!("/{kind}/{name}.rs"), format!("/{kind}/{name}/main.rs")];
            !workspace.files.iter().any(|file| ends.iter().any(|end| file.ends_with(end)))
        });
        missing.extend(gone.map(|(kind, name)| format!("{place}: {name} of {kind}")));
    };
    for file in workspace.with_ending(".md") {
        let text = workspace.read(file);
        (1..).zip(text.lines()).for_each(|(n, line)| check(format!("{file}:{n}"), line));
    }
    for file in workspace.with_ending(".rs") {
        let text = workspace.read(file);
        documentation(&text).for_each(|(n, line)| check(format!("{file}:{n}"), line));
    }
    assert!(missing.is_empty(), "these are named and not there:\n{}", missing.join("\n"));
}

#[test]
fn links_of_documents_lead_somewhere() {
    let workspace = Workspace::new();
    let mut missing = Vec::new();
    for file in workspace.with_ending(".md") {
        let text = workspace.read(file);
        let folder = workspace.root.join(Path::new(file).parent().unwrap());
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://") && !target.starts_with('#')) {
            let path = target.split('#').next().unwrap_or(target);
            if !folder.join(path).exists() {
                missing.push(format!("{file}: {target}"));
            }
        }
    }
    assert!(missing.is_empty(), "these links lead nowhere:\n{}", missing.join("\n"));
}

#[test]
fn the_lists_of_unsafe_modules_are_what_the_code_says() {
    let workspace = Workspace::new();
    let modules = workspace.unsafe_modules();

    let architecture = workspace.read("docs/architecture.md");
    let table = architecture.split(UNSAFE_HEADING).nth(1).expect("the table of unsafe modules");
    let rows = table.lines().take_while(|line| !line.starts_with('#'));
    let cells = rows.filter_map(|row| row.strip_prefix("| `")?.split('`').next());
    let listed: BTreeSet<String> = cells.map(str::to_owned).collect();
    assert_eq!(listed, modules, "docs/architecture.md against the code");

    // Packages of tests have folders below another one's.
    let package_of =
        |file: &String| file.split_once("/src/").map(|(package, _)| package.to_owned());
    let packages: BTreeSet<String> = modules.iter().filter_map(package_of).collect();
    for package in packages {
        let library = format!("{package}/src/lib.rs");
        let text = workspace.read(&library);
        let lines: Vec<&str> = documentation(&text).map(|(_, line)| line.trim_start()).collect();
        let start = lines.iter().position(|line| *line == UNSAFE_HEADING);
        let start = start.unwrap_or_else(|| panic!("{library} has no \"{UNSAFE_HEADING}\"")) + 1;
        let section = lines[start..].iter().take_while(|line| !line.starts_with("# "));
        let section = section.copied().collect::<Vec<_>>().join("\n");
        let expected = modules.iter().filter(|file| package_of(file).as_ref() == Some(&package));
        let expected: BTreeSet<String> = expected.map(|file| module_name(file)).collect();
        assert_eq!(spans(&section), expected, "{library} against the code");
    }

    let readme = workspace.read("README.md");
    const NUMBERS: [&str; 16] = [
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
        "twenty",
        "twenty-one",
        "twenty-two",
        "twenty-three",
        "twenty-four",
        "twenty-five",
    ];
    let number = modules.len().checked_sub(10).and_then(|index| NUMBERS.get(index));
    let number = number.unwrap_or_else(|| panic!("no word for {} modules", modules.len()));
    let text = readme.split_whitespace().collect::<Vec<_>>().join(" ");
    let claim = format!("contain unsafe code, in {number} small modules");
    assert!(text.contains(&claim), "README.md does not say: {claim}");
}

/// A published library is built, and its tests are, from the files of its package alone.
#[test]
fn no_library_includes_a_file_from_outside_of_its_package() {
    let workspace = Workspace::new();
    let mut outside = Vec::new();
    for file in workspace.with_ending(".rs") {
        if !package_of(file).is_some_and(|package| LIBRARIES.contains(&package)) {
            continue;
        }
        for (number, line) in (1..).zip(workspace.read(file).lines()) {
            if leads_out_of_package(file, line) {
                outside.push(format!("{file}:{number}: {}", line.trim()));
            }
        }
    }
    assert!(outside.is_empty(), "not in the package:\n{}", outside.join("\n"));
}

#[test]
fn no_line_of_rust_is_too_long() {
    let workspace = Workspace::new();
    let mut long = Vec::new();
    for file in workspace.with_ending(".rs") {
        for (number, line) in (1..).zip(workspace.read(file).lines()) {
            let columns = line.chars().count();
            if columns > COLUMNS {
                long.push(format!("{file}:{number}: {columns} columns"));
            }
        }
    }
    assert!(long.is_empty(), "longer than {COLUMNS} columns:\n{}", long.join("\n"));
}

/// The checks see what they are for.
#[test]
fn what_is_planted_is_found() {
    let found = |text: &str| paths(text).join(" ");
    assert_eq!(found("(`a/src/b.rs`, `c.md`)."), "a/src/b.rs c.md");
    assert_eq!(
        found("`map/src/{x,y/z}.rs` and x.rs,y.rs"),
        "map/src/x.rs map/src/y/z.rs x.rs y.rs"
    );
    assert_eq!(
        found("see https://example.org/a.md, /etc/b.toml, `.rs`, a.rst, at c.rs:12"),
        "c.rs"
    );

    assert_eq!(
        folders("`src/draw/`, `a/b` and `tests/{x,y}`").join(" "),
        "src/draw tests/x tests/y"
    );
    assert_eq!(folders("`.ci/run`, `src/a.svg`, `/etc/b.sh`").join(" "), ".ci/run src/a.svg");
    let named = targets("`cargo run --example mini_pc -- --help`, --bench NAME, (--test kvm)");
    assert_eq!(named, [("examples", "mini_pc".to_owned()), ("tests", "kvm".to_owned())]);

    let opts_in = |text: &str| attributes(text).any(|attribute| allows_unsafe(&attribute));
    for text in [
        "#![allow(unsafe_code)]",
        "//! Text.\n#![allow(clippy::undocumented_unsafe_blocks, unsafe_code)]",
        "#[expect(\n    dead_code,\n    unsafe_code,\n    reason = \"[sic]\"\n)]\nmod a;",
        "mod a {\n    #![cfg_attr(unix, allow(dead_code, unsafe_code))]\n}",
    ] {
        assert!(opts_in(text), "{text}");
    }
    for text in [
        "// #![allow(unsafe_code)]",
        "#![deny(unsafe_code)]",
        "#![forbid(dead_code, unsafe_code)]\n#![allow(dead_code)]",
        "# not an attribute (unsafe_code",
    ] {
        assert!(!opts_in(text), "{text}");
    }

    let shared = "#[path = \"../../tests/deadline.rs\"]";
    assert!(leads_out_of_package("display-vga/tests/logs.rs", shared));
    assert!(!leads_out_of_package("display-vga/src/output/png.rs", shared));
    assert!(leads_out_of_package("ram-block/src/lib.rs", "x(include_str!(\"../../README.md\"))"));
    assert!(!leads_out_of_package(
        "ram-block/src/lib.rs",
        "#[doc = include_str!(\"../README.md\")]"
    ));

    let workspace = Workspace::new();
    assert!(workspace.has("docs/architecture.md", None));
    assert!(workspace.has_folder("src/draw") && !workspace.has_folder("src/dra"));
    assert!(workspace.has_folder(".ci/run") && !workspace.has_folder(".ci/ru"));
    assert!(workspace.has_folder("src/draw/text.rs") && !workspace.has_folder("draw/text.sh"));
    assert!(workspace.has("page.rs", Some("ram-block")) && workspace.has("page.rs", None));
    assert!(!workspace.has("page.rs", Some("kvm-accel")), "another package's");
    assert!(!workspace.has("age.rs", None) && !workspace.has("ram-block/page.rs", None));

    let text =
        "//! Text.\n//! # Where the unsafe code is\n//!\n//! `a::b` does.\nuse x;\n/// More.";
    let lines: Vec<_> = documentation(text).map(|(number, _)| number).collect();
    assert_eq!(lines, [1, 2, 3, 4, 6]);
    assert_eq!(spans("`a::b` and `c`"), ["a::b", "c"].map(str::to_owned).into());
    assert_eq!(module_name("ram-block/src/content/zero_scan.rs"), "content::zero_scan");
}
