//! No crate has a circle of files, and imports lead downwards through the layers that
//! `docs/architecture.md` lists: `cargo test --test layers -- --nocapture` prints the graph.
//!
//! A file imports what its paths lead to, and depends as well on files of which it calls methods:
//! those are found by their names, where these are clear.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::buffer::{Cursor, TokenBuffer};
use syn::visit::{self, Visit};

const CRATES: [&str; 7] = [
    "ram-block",
    "memory-region",
    "kvm-accel",
    "migration-ram",
    "display-vga",
    "tests/rv64",
    "tests/browser",
];
const HEADING: &str = "# Layers";
/// Methods of std's types that a type of a crate has, too: a call may mean either.
const STD: [&str; 3] = ["get_mut", "is_empty", "try_clone"];

/// A path of modules from a crate's root.
type ModulePath = Vec<String>;

/// One file of a crate.
#[derive(Default)]
struct File {
    /// Paths that the code names, each from the crate's root.
    names: Vec<ModulePath>,
    /// What the file hands on under a name of its own.
    reexports: BTreeMap<String, ModulePath>,
    /// Names of modules with files of their own.
    children: BTreeSet<String>,
    /// Names that imports brought, by the module in which they are, and what they are.
    imported: BTreeMap<(ModulePath, String), ModulePath>,
    /// What is imported by a glob, and whether it is handed on.
    globs: Vec<(ModulePath, bool)>,
    /// Names of inherent methods that are defined here.
    methods: BTreeSet<String>,
    /// Names of methods of traits, declared or implemented here: a call of one may lead anywhere.
    of_traits: BTreeSet<String>,
    /// Names of methods that the code calls.
    calls: BTreeSet<String>,
    /// Whether there is anything in it but modules and imports.
    has_code: bool,
}

/// The files of a crate by their module paths; what is compiled for tests only is left out.
#[derive(Default)]
struct Crate(BTreeMap<ModulePath, File>);

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else { return false };
        let condition: String = list.tokens.to_string().split_whitespace().collect();
        list.path.is_ident("cfg") && (condition == "test" || condition.starts_with("all(test,"))
    })
}

fn attributes_of(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Reads the names of one file.
struct Reader<'a> {
    /// The module in which the reader is, which may lie within its file.
    at: ModulePath,
    file: &'a mut File,
}

impl Reader<'_> {
    /// A path from the crate's root, if it is one of the crate.
    fn absolute(&self, path: &[String]) -> Option<ModulePath> {
        let (first, rest) = path.split_first()?;
        let imported = self.file.imported.get(&(self.at.clone(), first.clone()));
        let mut whole = match first.as_str() {
            "crate" => Vec::new(),
            "self" => self.at.clone(),
            "super" => self.at[..self.at.len().checked_sub(1)?].to_vec(),
            child if self.file.children.contains(child) => {
                [self.at.clone(), vec![child.to_owned()]].concat()
            }
            _ => imported?.clone(),
        };
        for name in rest {
            match name.as_str() {
                "super" => drop(whole.pop()?),
                "self" => {}
                name => whole.push(name.to_owned()),
            }
        }
        Some(whole)
    }

    fn use_tree(&mut self, tree: &syn::UseTree, before: &[String], handed_on: bool) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        let (path, name) = match tree {
            syn::UseTree::Path(tree) => {
                return self.use_tree(&tree.tree, &with(&tree.ident), handed_on);
            }
            syn::UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.use_tree(tree, before, handed_on));
            }
            syn::UseTree::Name(tree) if tree.ident == "self" => (before.to_vec(), None),
            syn::UseTree::Name(tree) => (with(&tree.ident), None),
            syn::UseTree::Rename(tree) => (with(&tree.ident), Some(tree.rename.to_string())),
            syn::UseTree::Glob(_) => {
                let Some(whole) = self.absolute(before) else { return };
                self.file.globs.push((whole.clone(), handed_on));
                return self.file.names.push(whole);
            }
        };
        let Some(whole) = self.absolute(&path) else { return };
        let name = name.or_else(|| path.last().cloned()).unwrap_or_default();
        if handed_on {
            self.file.reexports.insert(name.clone(), whole.clone());
        }
        self.file.imported.insert((self.at.clone(), name), whole.clone());
        self.file.names.push(whole);
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if is_for_tests(attributes_of(item)) {
            return;
        }
        match item {
            syn::Item::Use(item) => {
                let handed_on = !matches!(item.vis, syn::Visibility::Inherited);
                self.use_tree(&item.tree, &[], handed_on);
            }
            syn::Item::Mod(item) => {
                // One without a body has a file of its own.
                self.at.push(item.ident.to_string());
                visit::visit_item_mod(self, item);
                self.at.pop();
            }
            _ => {
                self.file.has_code = true;
                visit::visit_item(self, item);
            }
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        for part in &item.items {
            let syn::ImplItem::Fn(method) = part else { continue };
            if method.sig.receiver().is_none() || is_for_tests(&method.attrs) {
                continue;
            }
            let names = match item.trait_ {
                None => &mut self.file.methods,
                Some(_) => &mut self.file.of_traits,
            };
            names.insert(method.sig.ident.to_string());
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.file.of_traits.insert(item.sig.ident.to_string());
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_for_tests(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.file.calls.insert(call.method.to_string());
        visit::visit_expr_method_call(self, call);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<_> = path.segments.iter().map(|part| part.ident.to_string()).collect();
        if names.len() > 1 {
            let whole = self.absolute(&names);
            self.file.names.extend(whole);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.visit_path(&item.path);
        // What is handed to a macro are tokens.
        self.tokens(TokenBuffer::new2(item.tokens.clone()).begin());
    }
}

impl Reader<'_> {
    /// Reads the paths and method calls among tokens.
    fn tokens(&mut self, mut at: Cursor<'_>) {
        while !at.eof() {
            if let Some((inside, _, _, next)) = at.any_group() {
                self.tokens(inside);
                at = next;
            } else if let Some((names, next)) = path_at(at) {
                if names.len() > 1 {
                    let whole = self.absolute(&names);
                    self.file.names.extend(whole);
                }
                at = next;
            } else {
                let called = punct(at, ".").and_then(Cursor::ident);
                let called = called
                    .filter(|(_, next)| next.any_group().is_some() || punct(*next, "::").is_some());
                self.file.calls.extend(called.map(|(name, _)| name.to_string()));
                let Some((_, next)) = at.token_tree() else { return };
                at = next;
            }
        }
    }
}

/// What comes after the characters `mark`, if they are next.
fn punct<'a>(at: Cursor<'a>, mark: &str) -> Option<Cursor<'a>> {
    mark.chars().try_fold(at, |at, c| {
        at.punct().filter(|(found, _)| found.as_char() == c).map(|(_, next)| next)
    })
}

/// A path, if one is next, and what comes after it.
fn path_at(at: Cursor<'_>) -> Option<(Vec<String>, Cursor<'_>)> {
    let (first, mut at) = at.ident()?;
    let mut names = vec![first.to_string()];
    while let Some((name, next)) = punct(at, "::").and_then(Cursor::ident) {
        names.push(name.to_string());
        at = next;
    }
    Some((names, at))
}

impl Crate {
    /// Reads the files below a crate's root; `read` gives a file's text by its path.
    fn new(read: &dyn Fn(&Path) -> Option<String>) -> Self {
        let mut this = Self::default();
        let mut open = vec![(ModulePath::new(), PathBuf::from("lib.rs"))];
        while let Some((at, path)) = open.pop() {
            let text = read(&path).unwrap_or_else(|| panic!("there is no {}", path.display()));
            let syntax = syn::parse_file(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let mut file = File::default();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let folder = match stem {
                "lib" | "mod" => path.parent().unwrap().to_owned(),
                _ => path.with_extension(""),
            };
            for item in &syntax.items {
                let syn::Item::Mod(item) = item else { continue };
                let elsewhere =
                    item.attrs.iter().any(|attribute| attribute.path().is_ident("path"));
                if item.content.is_some() || is_for_tests(&item.attrs) || elsewhere {
                    continue;
                }
                let name = item.ident.to_string();
                let choices = [format!("{name}.rs"), format!("{name}/mod.rs")];
                let choices = choices.map(|choice| folder.join(choice));
                let found = choices.into_iter().find(|path| read(path).is_some());
                let found = found.unwrap_or_else(|| panic!("no module {name} of {path:?}"));
                open.push(([at.clone(), vec![name.clone()]].concat(), found));
                file.children.insert(name);
            }
            // An import may follow its use, and go on from what another one brings.
            for _ in 0..3 {
                file.names.clear();
                file.globs.clear();
                Reader { at: at.clone(), file: &mut file }.visit_file(&syntax);
            }
            this.0.insert(at, file);
        }
        this
    }

    /// The file in which what a path names is: through files that only hand it on.
    fn home(&self, path: &[String]) -> Option<&ModulePath> {
        let mut path = path.to_vec();
        for _ in 0..8 {
            let len = (0..=path.len()).rev().find(|len| self.0.contains_key(&path[..*len]))?;
            let (at, file) = self.0.get_key_value(&path[..len])?;
            let handed_on = path.get(len).and_then(|name| file.reexports.get(name));
            match handed_on {
                Some(to) => path = [to, &path[len + 1..]].concat(),
                None if file.has_code => return Some(at),
                None => return None,
            }
        }
        None
    }

    /// Globs that hide what is imported: of a module that hands on what other files have, and those
    /// that are handed on themselves.
    fn blind_globs(&self) -> Vec<String> {
        let globs = self.0.iter().flat_map(|(at, file)| file.globs.iter().map(move |to| (at, to)));
        let blind = globs.filter(|(_, (to, handed_on))| {
            let hides = |file: &File| !file.has_code || !file.reexports.is_empty();
            *handed_on || self.0.get(to).is_some_and(hides)
        });
        let fault = |(at, (to, _)): (&ModulePath, &(ModulePath, bool))| {
            format!("{}: a glob of crate::{}", at.join("::"), to.join("::"))
        };
        blind.map(fault).collect()
    }

    /// Whether a method of this name is declared or defined here.
    fn has_method(&self, name: &str) -> bool {
        self.0.values().any(|file| file.methods.contains(name) || file.of_traits.contains(name))
    }

    /// The file that defines the method that a call means by its name alone: only one file of the
    /// crate has it, no trait and no other crate.
    fn home_of_method(&self, name: &str, others: &[&Self]) -> Option<&ModulePath> {
        // Names of one word are std's more often than not.
        if !name.contains('_') || STD.contains(&name) {
            return None;
        }
        let mut homes = self.0.iter().filter(|(_, file)| file.methods.contains(name));
        let (home, _) = homes.next()?;
        let of_trait = self.0.values().any(|file| file.of_traits.contains(name));
        let is_clear = homes.next().is_none() && !of_trait;
        (is_clear && !others.iter().any(|other| other.has_method(name))).then_some(home)
    }

    /// Of which files each file calls methods. A method need not be imported, only its type.
    fn calls(&self, others: &[&Self]) -> BTreeMap<&ModulePath, BTreeSet<&ModulePath>> {
        let with_code = self.0.iter().filter(|(_, file)| file.has_code);
        with_code
            .map(|(at, file)| {
                let homes = file.calls.iter().filter_map(|name| self.home_of_method(name, others));
                (at, homes.filter(|home| *home != at).collect())
            })
            .collect()
    }

    /// Which files each file imports.
    fn imports(&self) -> BTreeMap<&ModulePath, BTreeSet<&ModulePath>> {
        let with_code = self.0.iter().filter(|(_, file)| file.has_code);
        with_code
            .map(|(at, file)| {
                let homes = file.names.iter().filter_map(|name| self.home(name));
                (at, homes.filter(|home| *home != at).collect())
            })
            .collect()
    }
}

/// A circle, if there is one: each file imports the next, and the last the first.
fn circle<'a>(
    imports: &BTreeMap<&'a ModulePath, BTreeSet<&'a ModulePath>>,
) -> Option<Vec<&'a ModulePath>> {
    let mut left = imports.clone();
    // What imports nothing that is left is in no circle.
    loop {
        let free = |(at, to): (&&'a ModulePath, &BTreeSet<_>)| {
            to.iter().all(|to| !left.contains_key(to)).then_some(*at)
        };
        match left.iter().find_map(free) {
            Some(at) => drop(left.remove(at)),
            None => break,
        }
    }
    let mut way = vec![*left.keys().next()?];
    loop {
        let next = left[way.last()?].iter().find(|to| left.contains_key(*to))?;
        if let Some(start) = way.iter().position(|at| at == next) {
            return Some(way.split_off(start));
        }
        way.push(next);
    }
}

/// Imports that lead from a layer to a higher one, and layers that are not listed.
fn upward(
    imports: &BTreeMap<&ModulePath, BTreeSet<&ModulePath>>,
    layers: &[String],
) -> Vec<String> {
    let level = |at: &ModulePath| {
        let layer = at.first()?;
        layers.iter().position(|other| other == layer)
    };
    let mut faults = Vec::new();
    for (at, to) in imports.iter().filter(|(at, _)| !at.is_empty()) {
        if level(at).is_none() {
            faults.push(format!("{} is in no layer", at.join("::")));
        }
        let up = to.iter().filter(|to| level(to).is_some() && level(to) < level(at));
        faults.extend(up.map(|to| format!("{} imports {}", at.join("::"), to.join("::"))));
    }
    faults
}

/// The layers of each crate, from the top to the bottom, as the document lists them.
fn listed(document: &str) -> BTreeMap<String, Vec<String>> {
    let section = document.split(HEADING).nth(1).expect("no list of layers");
    let section = section.split("\n#").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let row = |row: &str| {
        let (name, rest) = row.split_once('`')?;
        let layers = rest.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        Some((name.to_owned(), layers))
    };
    rows.filter_map(row).collect()
}

fn listing<'a>(files: impl Iterator<Item = &'a &'a ModulePath>) -> String {
    files.map(|file| file.join("::")).collect::<Vec<_>>().join(", ")
}

/// Each file's imports, and whose methods it calls.
fn both<'a>(
    mut imports: BTreeMap<&'a ModulePath, BTreeSet<&'a ModulePath>>,
    calls: &BTreeMap<&'a ModulePath, BTreeSet<&'a ModulePath>>,
) -> BTreeMap<&'a ModulePath, BTreeSet<&'a ModulePath>> {
    for (at, to) in &mut imports {
        to.extend(&calls[at]);
    }
    imports
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn imports_lead_downwards_and_in_no_circle() {
    let document = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let layers = listed(&document);
    let mut faults = Vec::new();
    let crates = CRATES.map(|name| {
        let source = root().join(name).join("src");
        (name, Crate::new(&|path| fs::read_to_string(source.join(path)).ok()))
    });
    for (name, found) in &crates {
        let others = crates.iter().filter(|(other, _)| other != name);
        let others: Vec<_> = others.map(|(_, other)| other).collect();
        let (imports, calls) = (found.imports(), found.calls(&others));
        println!("{name}: {} files", imports.len());
        for (at, to) in &imports {
            println!("  {} -> {}", at.join("::"), listing(to.iter()));
            let called: Vec<_> = calls[at].difference(to).collect();
            if !called.is_empty() {
                println!("    calls {}", listing(called.into_iter()));
            }
        }
        let imports = both(imports, &calls);
        faults.extend(found.blind_globs().into_iter().map(|glob| format!("{name}: {glob}")));
        if let Some(circle) = circle(&imports) {
            let circle: Vec<_> = circle.iter().map(|at| at.join("::")).collect();
            faults.push(format!("{name}: a circle: {}", circle.join(" -> ")));
        }
        let layers = layers.get(*name).cloned().unwrap_or_default();
        let there: BTreeSet<_> = found.0.keys().filter_map(|at| at.first()).collect();
        let gone = layers.iter().filter(|layer| !there.contains(layer));
        faults.extend(gone.map(|layer| format!("{name}: there is no layer {layer}")));
        faults
            .extend(upward(&imports, &layers).into_iter().map(|fault| format!("{name}: {fault}")));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// What a crate of a few files comes to: its circle, and what leads upwards.
fn judged(files: &[(&str, &str)], layers: &[&str]) -> (Option<String>, Vec<String>) {
    let files: BTreeMap<&Path, &str> =
        files.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
    let found = Crate::new(&|path| files.get(path).map(|text| (*text).to_owned()));
    let imports = both(found.imports(), &found.calls(&[]));
    let circle = circle(&imports).map(|circle| {
        let names: BTreeSet<_> = circle.iter().map(|at| at.join("::")).collect();
        names.into_iter().collect::<Vec<_>>().join(" ")
    });
    let layers: Vec<_> = layers.iter().map(|layer| (*layer).to_owned()).collect();
    let faults = upward(&imports, &layers).into_iter().chain(found.blind_globs());
    (circle, faults.collect())
}

#[test]
fn what_is_planted_is_found() {
    let lib = ("lib.rs", "mod top; mod low; pub use top::a::A;");
    let top = ("top/mod.rs", "mod a; mod b; pub(crate) use a::A;");
    let a = "use crate::{low::{Low, self}, top::b::B}; pub struct A;
        impl A { fn of_a_file(&self) {} fn of_two_files(&self) {} fn word(&self) {} }
        impl A { #[cfg(test)] fn of_tests(&self) {} fn is_empty(&self) {} fn of_a_trait(&self) {} }
        impl Low for A { fn of_a_trait(&self) {} }";
    let a = ("top/a.rs", a);
    let b = ("top/b.rs", "pub(crate) struct B;");
    let low = ("low.rs", "pub(crate) struct Low; impl Low { fn of_two_files(&self) {} }");
    assert_eq!(judged(&[lib, top, a, b, low], &["top", "low"]), (None, vec![]));
    assert_eq!(judged(&[lib, top, a, b, low], &["top"]).1, ["low is in no layer"]);
    for text in [
        "use crate::top::a; struct B(a::A);",
        "use super::A; struct B(A);",
        "use crate::A as Other; struct B(Other);",
        "use super::super::top::a::*; struct B(A);",
        "struct B(crate::top::a::A);",
        "fn b() { let _ = crate::A; }",
        "fn b() { println!(\"{:?}\", [crate :: top :: A]); }",
        "mod inner { use super::super::a::A; fn b(_: A) {} }",
        "use super as s; struct B(s::a::A);",
        "struct B(top::A); use crate::top;",
        "use crate as c; use c::top as t; struct B(t::a::A);",
        "fn b() { println!(\"{:?}\", super::a::A); }",
        "fn b() { assert!(x && super :: super::top::a::A.is_good()); }",
        "macro_rules! b { () => { $crate::top::a::A } }",
        "fn b() { crate::top::a::say!(); }",
        "struct B; fn b(a: u8) { a.of_a_file(); }",
        "struct B; fn b(a: u8) { a.of_a_file::<u8>(); }",
        "struct B; fn b(a: u8) { assert!(a.map(|a| a.of_a_file())); }",
    ] {
        let (circle, _) = judged(&[lib, top, a, ("top/b.rs", text), low], &["top", "low"]);
        assert_eq!(circle.as_deref(), Some("top::a top::b"), "{text}");
    }
    for text in [
        "#[cfg(test)] use super::A; struct B;",
        "#[cfg(test)] mod tests { use crate::top::a::A; }",
        "#[cfg(all(test, not(miri)))] mod tests; struct B;",
        "/// As [`crate::A`].\nstruct B;",
        "use std::fmt as a; struct B(a::A);",
        "struct B; fn b(a: u8) { a.of_a_trait(); a.of_two_files(); a.word(); }",
        "struct B; fn b(a: u8) { a.of_tests(); a.is_empty(); a.of_a_file; }",
        "struct B; #[cfg(test)] mod tests { fn b(a: u8) { a.of_a_file(); } }",
    ] {
        let (circle, _) = judged(&[lib, top, a, ("top/b.rs", text), low], &["top", "low"]);
        assert_eq!(circle, None, "{text}");
    }
    let upward = ("low.rs", "use crate::top::b::B; struct Low(B);");
    let (circle, faults) = judged(&[lib, top, a, b, upward], &["top", "low"]);
    assert_eq!((circle, faults), (None, vec!["low imports top::b".to_owned()]));
    for (text, glob) in [
        ("use crate::*; struct B(A);", Some("top::b: a glob of crate::")),
        ("use super::*; struct B(A);", Some("top::b: a glob of crate::top")),
        ("use super as s; use s::*; struct B(A);", Some("top::b: a glob of crate::top")),
        ("pub use crate::low::*; struct B;", Some("top::b: a glob of crate::low")),
        ("use crate::low::*; struct B(Low);", None),
        ("use crate::low::Low::*; struct B;", None),
        ("mod inner { use super::*; } struct B;", None),
        ("#[cfg(test)] mod tests { use super::super::*; } struct B;", None),
    ] {
        let (_, faults) = judged(&[lib, top, a, ("top/b.rs", text), low], &["top", "low"]);
        assert_eq!(faults, glob.into_iter().collect::<Vec<_>>(), "{text}");
    }
}

#[test]
fn layers_are_read_from_the_document() {
    let text =
        "# One\n\n## Layers\n\n| crate | layers |\n|---|---|\n| `x` | `a` over `b` |\n\n## C `d`";
    assert_eq!(listed(text)["x"], ["a", "b"]);
}
