//! What is exchanged for what.

use syn::{BinOp, GenericArgument, Lit, PathArguments, ReturnType, Type};

/// The operators that stand in for `operator`, as text, and what kind of change that is.
pub fn operators(operator: &BinOp) -> Option<(&'static str, &'static str, &'static [&'static str])> {
    Some(match operator {
        BinOp::Lt(_) => ("comparison", "<", &["<=", ">="]),
        BinOp::Le(_) => ("comparison", "<=", &["<", ">"]),
        BinOp::Gt(_) => ("comparison", ">", &[">=", "<="]),
        BinOp::Ge(_) => ("comparison", ">=", &[">", "<"]),
        BinOp::Eq(_) => ("comparison", "==", &["!="]),
        BinOp::Ne(_) => ("comparison", "!=", &["=="]),
        BinOp::Add(_) => ("arithmetic", "+", &["-", "*"]),
        BinOp::Sub(_) => ("arithmetic", "-", &["+"]),
        BinOp::Mul(_) => ("arithmetic", "*", &["/", "+"]),
        BinOp::Div(_) => ("arithmetic", "/", &["*"]),
        BinOp::Rem(_) => ("arithmetic", "%", &["/"]),
        BinOp::AddAssign(_) => ("arithmetic", "+=", &["-=", "*="]),
        BinOp::SubAssign(_) => ("arithmetic", "-=", &["+="]),
        BinOp::MulAssign(_) => ("arithmetic", "*=", &["/="]),
        BinOp::DivAssign(_) => ("arithmetic", "/=", &["*="]),
        BinOp::And(_) => ("logic", "&&", &["||"]),
        BinOp::Or(_) => ("logic", "||", &["&&"]),
        BinOp::BitAnd(_) => ("bits", "&", &["|"]),
        BinOp::BitOr(_) => ("bits", "|", &["&"]),
        BinOp::BitXor(_) => ("bits", "^", &["&"]),
        BinOp::Shl(_) => ("bits", "<<", &[">>"]),
        BinOp::Shr(_) => ("bits", ">>", &["<<"]),
        _ => return None,
    })
}

/// Methods that stand in for one another, both ways; those of tensors among them.
const METHODS: [(&str, &str); 13] = [
    ("min", "max"),
    ("min_by", "max_by"),
    ("floor", "ceil"),
    ("any", "all"),
    ("is_some", "is_none"),
    ("first", "last"),
    ("wrapping_add", "wrapping_sub"),
    ("broadcast_add", "broadcast_sub"),
    ("broadcast_mul", "broadcast_div"),
    ("sum_all", "mean_all"),
    ("sum_keepdim", "mean_keepdim"),
    ("min_keepdim", "max_keepdim"),
    ("sum", "mean"),
];

/// The method that stands in for `name`.
pub fn method(name: &str) -> Option<&'static str> {
    METHODS.iter().find_map(|&(a, b)| match name {
        _ if name == a => Some(b),
        _ if name == b => Some(a),
        _ => None,
    })
}

/// Methods without arguments that are left out: what they are called on stands in.
pub const LEFT_OUT: [&str; 3] = ["abs", "sqrt", "rev"];

/// What stands in for a number: one more, and zero.
pub fn literals(literal: &Lit) -> Vec<String> {
    match literal {
        Lit::Int(number) => {
            let Ok(value) = number.base10_parse::<u128>() else {
                return Vec::new();
            };
            let suffix = number.suffix();
            let more = format!("{}{suffix}", value.wrapping_add(1));
            if value == 0 {
                vec![more]
            } else {
                vec![more, format!("0{suffix}")]
            }
        }
        Lit::Float(number) => {
            let Ok(value) = number.base10_parse::<f64>() else {
                return Vec::new();
            };
            let suffix = number.suffix();
            let more = format!("{:?}{suffix}", value + 1.0);
            if value == 0.0 {
                vec![more]
            } else {
                vec![more, format!("0.0{suffix}")]
            }
        }
        Lit::Bool(value) => vec![(!value.value).to_string()],
        _ => Vec::new(),
    }
}

/// What a function of this return type may return at once; nothing where its type is not a plain one. `None` for `()`.
pub fn returned(output: &ReturnType) -> Option<Vec<String>> {
    match output {
        ReturnType::Default => None,
        ReturnType::Type(_, kind) if is_unit(kind) => None,
        ReturnType::Type(_, kind) => Some(values(kind)),
    }
}

fn is_unit(kind: &Type) -> bool {
    matches!(kind, Type::Tuple(tuple) if tuple.elems.is_empty())
}

fn values(kind: &Type) -> Vec<String> {
    let list = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    match kind {
        Type::Tuple(tuple) if tuple.elems.is_empty() => list(&["()"]),
        Type::Tuple(tuple) => {
            let firsts: Vec<String> = tuple
                .elems
                .iter()
                .filter_map(|part| values(part).into_iter().next())
                .collect();
            if firsts.len() == tuple.elems.len() {
                vec![format!("({},)", firsts.join(", "))]
            } else {
                Vec::new()
            }
        }
        Type::Path(path) => {
            let Some(last) = path.path.segments.last() else {
                return Vec::new();
            };
            match last.ident.to_string().as_str() {
                "bool" => list(&["true", "false"]),
                "f32" | "f64" => list(&["0.0", "1.0"]),
                "usize" | "u64" | "u32" | "u16" | "u8" | "isize" | "i64" | "i32" | "i16" | "i8" => {
                    list(&["0", "1"])
                }
                "String" => list(&["String::new()"]),
                "Vec" => list(&["Vec::new()"]),
                "Option" => list(&["None"]),
                "Result" => first_argument(&last.arguments)
                    .map_or_else(Vec::new, values)
                    .into_iter()
                    .map(|value| format!("Ok({value})"))
                    .collect(),
                _ => Vec::new(),
            }
        }
        _ => Vec::new(),
    }
}

fn first_argument(arguments: &PathArguments) -> Option<&Type> {
    let PathArguments::AngleBracketed(arguments) = arguments else {
        return None;
    };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::Type(kind) => Some(kind),
        _ => None,
    })
}
