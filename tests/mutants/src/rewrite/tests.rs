use super::*;

fn source(text: &str) -> Source {
    let found = find::sites(text).expect("Rust");
    let mut sources = vec![Source {
        path: "a.rs".into(),
        text: text.to_owned(),
        sites: found.sites,
    }];
    number(&mut sources);
    sources.remove(0)
}

/// The changes that are made of a text.
fn changes(text: &str) -> Vec<String> {
    alive(&[source(text)])
        .into_iter()
        .map(|mutant| mutant.change)
        .collect()
}

/// The text with one mutant in the place of its original and no choice.
fn with(text: &str, change: &str) -> String {
    let mut source = source(text);
    for mutant in source.sites.iter_mut().flat_map(|site| &mut site.mutants) {
        mutant.alive = mutant.change == change;
    }
    let rendered = source.render();
    assert_eq!(rendered.mutants.len(), 1, "{change} of {:?}", changes(text));
    rendered.text
}

#[test]
fn a_mutant_stands_beside_its_original() {
    let text = "fn f(a: u8) -> char { if a < 2 { 'a' } else { 'b' } }";
    assert_eq!(
        with(text, "a < 2 -> <="),
        "fn f(a: u8) -> char { if (if crate::mutant_switch::on(3) { (a) <= (2) } else { (a < 2) }) { 'a' } else { 'b' } }"
    );
    assert_eq!(
        changes(text),
        [
            "a < 2 -> true",
            "a < 2 -> false",
            "a < 2 -> <=",
            "a < 2 -> >=",
            "2 -> 3",
            "2 -> 0"
        ]
    );
}

#[test]
fn a_mutant_of_an_outer_place_holds_no_choice_of_an_inner_one() {
    let rendered = source("fn f(a: char, b: char) { let x = a + b * c; }").render();
    let text = &rendered.text;
    let outer = rendered
        .mutants
        .iter()
        .find(|(id, _)| *id == 2)
        .expect("the second");
    assert_eq!(&text[outer.1.clone()], "(a) - (b * c)");
    assert_eq!(text.matches("on(4)").count(), 1);
    assert_eq!(text.matches("(b) / (c)").count(), 1);
    syn::parse_file(text).expect("Rust again");
}

#[test]
fn what_is_constant_a_pattern_a_type_or_a_test_stays() {
    for text in [
        "const A: usize = 1 + 2;",
        "static A: usize = 1 + 2;",
        "const fn f() -> usize { 1 + 2 }",
        "#[test] fn f() { g(1 + 2) }",
        "#[cfg(test)] mod tests { fn f() -> bool { true } }",
        "fn f(a: [u8; 3]) -> [u8; 4] { const N: usize = 4; [a[N]; 3] }",
        "fn f() -> char { match c { 1..=2 => 'a', 3 => 'b', _ => 'c' } }",
        "fn f() -> char { println!(\"{}\", 1 + 2); #[allow(x = \"1\")] 'a' }",
        "fn f() -> char { g::<3>(); 'a' }",
        "struct S; impl S { const A: u8 = 1; }",
        "enum E { A = 1 }",
    ] {
        let mut found = changes(text);
        found.retain(|change| change != "without g::<3>();");
        assert!(found.is_empty(), "{text}: {found:?}");
    }
}

#[test]
fn conditions_with_let_are_neither_grouped_nor_exchanged() {
    let text = "fn f() -> char { if let Some(x) = y && x < z { 'a' } else { 'b' } }";
    assert_eq!(changes(text), ["x < z -> <=", "x < z -> >="]);
    syn::parse_file(&source(text).render().text).expect("Rust again");
}

#[test]
fn statements_ranges_methods_and_signs() {
    let text = "fn f(v: &mut V) -> char { v.push(x)?; v.n = x; for i in a..b {} -x.abs().min(y); !z }";
    let expected = [
        "without v.push(x)?;",
        "without v.n = x;",
        "a + 1",
        "a - 1",
        "b + 1",
        "b - 1",
        "-x.abs().min(y) -> x.abs().min(y)",
        "min -> max",
        "x without abs",
        "!z -> z",
    ];
    assert_eq!(changes(text), expected);
    assert!(with(text, "without v.n = x;").contains("if crate::mutant_switch::on(2) {  } else { v.n = x; }"));
    assert!(with(text, "min -> max").contains("{ x.abs().max(y) } else { (x.abs().min(y)) }"));
}

#[test]
fn plain_results_are_returned_at_once() {
    let of = |output: &str| changes(&format!("fn f() {output} {{ g }}"));
    assert_eq!(of(""), ["return ;"]);
    assert_eq!(of("-> bool"), ["return true;", "return false;"]);
    assert_eq!(of("-> Result<f64>"), ["return Ok(0.0);", "return Ok(1.0);"]);
    assert_eq!(of("-> Result<(), E>"), ["return Ok(());"]);
    assert_eq!(of("-> (usize, Option<T>)"), ["return (0, None,);"]);
    assert_eq!(of("-> Vec<T>"), ["return Vec::new();"]);
    assert!(of("-> Tensor").is_empty() && of("-> (bool, Tensor)").is_empty());
    let text = with("fn f() -> bool {\n    g\n}", "return false;");
    assert_eq!(
        text,
        "fn f() -> bool {if crate::mutant_switch::on(2) { return false; }\n    g\n}"
    );
}

#[test]
fn places_are_said() {
    let text = "impl A {\n    fn f() -> char {\n        let x = 7;\n    }\n}";
    let mutant = alive(&[source(text)]).remove(0);
    assert_eq!(
        (mutant.line, mutant.column, mutant.function.as_str()),
        (3, 17, "A::f")
    );
}

#[test]
fn files_of_test_modules_are_known() {
    let found = find::sites("#[cfg(test)]\nmod tests;\n#[cfg(test)]\n#[path = \"b_tests.rs\"]\nmod more;")
        .expect("Rust");
    assert_eq!(found.test_modules, ["tests", "b_tests.rs"]);
    assert_eq!(
        module_paths(Path::new("src/a.rs"), "tests")[0],
        Path::new("src/a/tests.rs")
    );
    assert_eq!(
        module_paths(Path::new("src/mod.rs"), "tests")[1],
        Path::new("src/tests")
    );
    assert_eq!(
        module_paths(Path::new("src/b.rs"), "b_tests.rs"),
        [Path::new("src/b_tests.rs")]
    );
}
