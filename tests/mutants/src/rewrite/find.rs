//! The places of a text that can be mutated.

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{
    Attribute, BinOp, Block, Expr, ExprBinary, ExprIf, ExprMatch, ExprMethodCall, ExprRange, ExprRepeat,
    ExprUnary, ExprWhile, Signature, Stmt, UnOp,
};

use super::{Mutant, Shape, Site, table};

/// What a text holds.
#[derive(Debug, Default)]
pub struct Found {
    /// Its sites, sorted: outer before inner.
    pub sites: Vec<Site>,
    /// Modules in files of their own that are compiled for tests only.
    pub test_modules: Vec<String>,
}

/// The sites of a file.
///
/// # Errors
/// A text that is not Rust.
pub fn sites(text: &str) -> syn::Result<Found> {
    let file = syn::parse_file(text)?;
    let mut finder = Finder {
        text,
        names: Vec::new(),
        found: Found::default(),
    };
    finder.visit_file(&file);
    let mut found = finder.found;
    found.sites.sort_by_key(|site| {
        (
            site.range.start,
            !site.range.is_empty(),
            usize::MAX - site.range.end,
        )
    });
    found.sites.dedup_by(|later, kept| {
        let same = later.range == kept.range && later.shape == kept.shape;
        if same {
            kept.mutants.append(&mut later.mutants);
        }
        same
    });
    Ok(found)
}

struct Finder<'a> {
    text: &'a str,
    /// Types and functions around what is visited.
    names: Vec<String>,
    found: Found,
}

impl<'a> Finder<'a> {
    fn text_of(&self, part: &impl Spanned) -> &'a str {
        &self.text[part.span().byte_range()]
    }

    /// Adds a site of an expression with its mutants: their text, and what is said to have become what.
    fn expression(&mut self, part: &impl Spanned, kind: &'static str, mutants: Vec<(String, String)>) {
        let mutants = mutants
            .into_iter()
            .map(|(text, change)| mutant(text, kind, change))
            .collect();
        self.add(part.span(), part.span().byte_range(), Shape::Expression, mutants);
    }

    fn add(&mut self, at: Span, range: std::ops::Range<usize>, shape: Shape, mutants: Vec<Mutant>) {
        if mutants.is_empty() || self.names.is_empty() {
            return;
        }
        self.found.sites.push(Site {
            range,
            shape,
            line: at.start().line,
            column: at.start().column + 1,
            function: self.names.join("::"),
            mutants,
        });
    }

    fn condition(&mut self, condition: &Expr, kind: &'static str, values: &[&str]) {
        if !holds_let(condition) {
            let was = short(self.text_of(condition));
            let mutants = values
                .iter()
                .map(|&value| (value.to_owned(), format!("{was} -> {value}")))
                .collect();
            self.expression(condition, kind, mutants);
        }
    }

    /// The body of a function: what it could return at once, then what is in it.
    fn function(&mut self, attributes: &[Attribute], signature: &Signature, body: &Block) {
        if signature.constness.is_some() || signature.asyncness.is_some() || is_for_tests(attributes) {
            return;
        }
        self.names.push(signature.ident.to_string());
        let returned = match table::returned(&signature.output) {
            Some(values) => values,
            None if body.stmts.is_empty() => Vec::new(),
            None => vec![String::new()],
        };
        let mutants = returned.into_iter().map(|value| {
            let text = format!("return {value};");
            mutant(text.clone(), "return", text)
        });
        let mutants = mutants.collect();
        let inside = body.brace_token.span.open().byte_range().end;
        self.add(signature.ident.span(), inside..inside, Shape::Before, mutants);
        visit::visit_block(self, body);
        self.names.pop();
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.attrs, &item.sig, &item.block);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.attrs, &item.sig, &item.block);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.function(&item.attrs, &item.sig, body);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if !is_for_tests(&item.attrs) {
            let name = match &*item.self_ty {
                syn::Type::Path(path) => path.path.segments.last().map(|last| last.ident.to_string()),
                _ => None,
            };
            self.names.push(name.unwrap_or_else(|| "impl".to_owned()));
            visit::visit_item_impl(self, item);
            self.names.pop();
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        } else if item.content.is_none() {
            let named = item.attrs.iter().find_map(path_of);
            self.found
                .test_modules
                .push(named.unwrap_or_else(|| item.ident.to_string()));
        }
    }

    fn visit_expr(&mut self, expression: &'ast Expr) {
        match expression {
            Expr::Lit(literal) => {
                let was = self.text_of(literal).to_owned();
                let values = table::literals(&literal.lit).into_iter();
                let mutants = values
                    .map(|value| (value.clone(), format!("{was} -> {value}")))
                    .collect();
                self.expression(literal, "literal", mutants);
            }
            Expr::Const(_) => return,
            _ => {}
        }
        visit::visit_expr(self, expression);
    }

    fn visit_expr_binary(&mut self, binary: &'ast ExprBinary) {
        let choice = matches!(binary.op, BinOp::And(_) | BinOp::Or(_));
        if let Some((kind, was, others)) = table::operators(&binary.op)
            && !(choice && (holds_let(&binary.left) || holds_let(&binary.right)))
        {
            let (left, right) = (self.text_of(&binary.left), self.text_of(&binary.right));
            let mutants = others.iter().map(|other| {
                let text = format!("({left}) {other} ({right})");
                (text, format!("{} {was} {} -> {other}", short(left), short(right)))
            });
            let mutants = mutants.collect();
            self.expression(binary, kind, mutants);
        }
        visit::visit_expr_binary(self, binary);
    }

    fn visit_expr_unary(&mut self, unary: &'ast ExprUnary) {
        let kind = match unary.op {
            UnOp::Not(_) => "not",
            UnOp::Neg(_) => "sign",
            _ => return visit::visit_expr_unary(self, unary),
        };
        let inner = self.text_of(&unary.expr).to_owned();
        let change = format!("{} -> {}", short(self.text_of(unary)), short(&inner));
        self.expression(unary, kind, vec![(format!("({inner})"), change)]);
        visit::visit_expr_unary(self, unary);
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        let name = call.method.to_string();
        let receiver = self.text_of(&call.receiver);
        if let Some(other) = table::method(&name) {
            let rest = &self.text[call.method.span().byte_range().end..call.span().byte_range().end];
            let text = format!("{receiver}.{other}{rest}");
            self.expression(call, "method", vec![(text, format!("{name} -> {other}"))]);
        } else if table::LEFT_OUT.contains(&name.as_str()) && call.args.is_empty() {
            let change = format!("{} without {name}", short(receiver));
            self.expression(call, "method", vec![(receiver.to_owned(), change)]);
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_range(&mut self, range: &'ast ExprRange) {
        for end in [&range.start, &range.end].into_iter().flatten() {
            // One more of a literal is made where literals are.
            if !matches!(**end, Expr::Lit(_)) {
                let was = self.text_of(end).to_owned();
                let mutants =
                    ["+", "-"].map(|sign| (format!("({was}) {sign} 1"), format!("{} {sign} 1", short(&was))));
                self.expression(end, "range", mutants.into());
            }
        }
        visit::visit_expr_range(self, range);
    }

    fn visit_expr_if(&mut self, branch: &'ast ExprIf) {
        self.condition(&branch.cond, "condition", &["true", "false"]);
        visit::visit_expr_if(self, branch);
    }

    fn visit_expr_while(&mut self, repeat: &'ast ExprWhile) {
        self.condition(&repeat.cond, "condition", &["false"]);
        visit::visit_expr_while(self, repeat);
    }

    fn visit_expr_match(&mut self, choice: &'ast ExprMatch) {
        for (_, guard) in choice.arms.iter().filter_map(|arm| arm.guard.as_ref()) {
            self.condition(guard, "condition", &["true", "false"]);
        }
        visit::visit_expr_match(self, choice);
    }

    fn visit_expr_repeat(&mut self, repeat: &'ast ExprRepeat) {
        self.visit_expr(&repeat.expr);
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        if let Stmt::Expr(expression, Some(_)) = statement
            && can_be_left_out(expression)
        {
            let change = format!("without {}", short(self.text_of(statement)));
            let mutants = vec![mutant(String::new(), "statement", change)];
            self.add(
                statement.span(),
                statement.span().byte_range(),
                Shape::Statement,
                mutants,
            );
        }
        visit::visit_stmt(self, statement);
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if let Some(init) = &local.init {
            self.visit_expr(&init.expr);
            if let Some((_, diverge)) = &init.diverge {
                self.visit_expr(diverge);
            }
        }
    }

    // Constant contexts, types, patterns and the insides of macros stay as they are.
    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}
    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}
    fn visit_item_enum(&mut self, _: &'ast syn::ItemEnum) {}
    fn visit_impl_item_const(&mut self, _: &'ast syn::ImplItemConst) {}
    fn visit_trait_item_const(&mut self, _: &'ast syn::TraitItemConst) {}
    fn visit_type(&mut self, _: &'ast syn::Type) {}
    fn visit_path(&mut self, _: &'ast syn::Path) {}
    fn visit_generics(&mut self, _: &'ast syn::Generics) {}
    fn visit_angle_bracketed_generic_arguments(&mut self, _: &'ast syn::AngleBracketedGenericArguments) {}
    fn visit_pat(&mut self, _: &'ast syn::Pat) {}
    fn visit_attribute(&mut self, _: &'ast Attribute) {}
    fn visit_macro(&mut self, _: &'ast syn::Macro) {}
}

fn mutant(text: String, kind: &'static str, change: String) -> Mutant {
    Mutant {
        id: 0,
        text,
        kind,
        change,
        alive: true,
    }
}

/// Whether `let` is a part of the condition: such a one cannot be exchanged or grouped.
fn holds_let(condition: &Expr) -> bool {
    match condition {
        Expr::Let(_) => true,
        Expr::Binary(binary) => holds_let(&binary.left) || holds_let(&binary.right),
        _ => false,
    }
}

fn can_be_left_out(expression: &Expr) -> bool {
    match expression {
        Expr::MethodCall(_) | Expr::Call(_) | Expr::Assign(_) => true,
        Expr::Binary(_) => true,
        Expr::Try(inner) => can_be_left_out(&inner.expr),
        _ => false,
    }
}

/// Whether something is compiled for tests only, or not in a plain build.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        if attribute.path().is_ident("test") {
            return true;
        }
        let syn::Meta::List(list) = &attribute.meta else {
            return false;
        };
        let traits = list.tokens.to_string();
        attribute.path().is_ident("cfg") && (traits == "test" || traits.starts_with("feature"))
    })
}

/// The file of `#[path = "file"]`.
fn path_of(attribute: &Attribute) -> Option<String> {
    let syn::Meta::NameValue(pair) = &attribute.meta else {
        return None;
    };
    let Expr::Lit(literal) = &pair.value else {
        return None;
    };
    match &literal.lit {
        syn::Lit::Str(text) if attribute.path().is_ident("path") => Some(text.value()),
        _ => None,
    }
}

/// A text in one line of at most 40 characters.
fn short(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= 40 {
        return line;
    }
    line.chars().take(37).chain("...".chars()).collect()
}
