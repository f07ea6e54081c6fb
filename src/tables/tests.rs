//! Tables of every writer and every type, and what is left of them when they are damaged.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/sources")
        .join(name)
}

fn texts(values: &[Option<&str>]) -> Vec<Option<String>> {
    values.iter().map(|value| value.map(str::to_owned)).collect()
}

fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("was read"),
        Err(error) => {
            assert_eq!(error.exit_code(), 2, "{error}");
            let text = error.to_string();
            assert_eq!(text.lines().count(), 1, "{text}");
            text
        }
    }
}

#[test]
fn values_of_every_type_have_one_text() {
    let table = Table::open(&fixture("types.parquet")).unwrap();
    for (column, expected) in [
        ("int8", ["-7", "7"]),
        ("int16", ["-7", "7"]),
        ("int32", ["-7", "7"]),
        ("int64", ["-7", "7"]),
        ("uint8", ["0", "255"]),
        ("uint16", ["0", "65535"]),
        ("uint32", ["0", "4294967295"]),
        ("uint64", ["0", "18446744073709551615"]),
        ("bool", ["true", "false"]),
        ("float", ["0.5", "7"]),
        ("decimal", ["1.5", "-7"]),
        ("decimal_long", ["12345678901234567890.5", "1"]),
        ("date", ["2026-01-31", "1969-12-31"]),
        ("timestamp_ms", ["2026-01-31T08:05:00.25", "1969-12-31T00:00:00"]),
        ("timestamp_us", ["2026-01-31T08:05:00.25", "1969-12-31T00:00:00"]),
        ("timestamp_ns", ["2026-01-31T08:05:00.25", "1969-12-31T00:00:00"]),
        (
            "timestamp_utc",
            ["2026-01-31T08:05:00.25Z", "2026-01-31T08:05:00.25Z"],
        ),
        ("time_ms", ["08:05:00", "08:05:00.25"]),
        ("time_us", ["08:05:00", "08:05:00.000001"]),
        ("large_string", ["a", "b"]),
        ("dictionary", ["b", "a"]),
        ("dictionary_int", ["30", "20"]),
        ("binary", ["a", "é"]),
        ("fixed", ["ab", "cd"]),
    ] {
        let expected = texts(&[Some(expected[0]), Some(expected[1]), None]);
        assert_eq!(table.text(column).unwrap(), Some(expected), "{column}");
    }
    let expected = |values: &[Option<&str>]| Some(texts(values));
    assert_eq!(table.text("double").unwrap(), expected(&[None, Some("-2"), None]));
    assert_eq!(table.text("string").unwrap(), expected(&[Some("a"), None, None]));
    assert_eq!(table.text("null").unwrap(), expected(&[None, None, None]));
    let paths = expected(&[Some("0.png"), Some("1.png"), Some("2.png")]);
    assert_eq!(table.text("path").unwrap(), paths);
    assert_eq!(table.text("no such column").unwrap(), None);
    let stamps = Table::open(&fixture("int96.parquet")).unwrap();
    assert_eq!(
        stamps.text("label").unwrap(),
        expected(&[Some("2026-01-31T08:05:00.25")])
    );
}

#[test]
fn what_has_no_text_is_named_when_it_is_requested() {
    let table = Table::open(&fixture("types.parquet")).unwrap();
    for column in ["list", "struct", "map", "not_text", "decimal_longer"] {
        let text = message(table.text(column));
        assert!(text.contains("types.parquet"), "{column}: {text}");
    }
    assert!(message(table.text("not_text")).contains("column `not_text`, row 0"));
    for (column, kind) in [
        ("list", Kind::Nested),
        ("map", Kind::Nested),
        ("struct", Kind::Nested),
        ("binary", Kind::Bytes),
        ("decimal", Kind::Value),
        ("dictionary", Kind::Text),
    ] {
        assert_eq!(table.kind(column), Some(kind), "{column}");
    }
}

fn csv(bytes: &[u8]) -> Result<Table> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("list.csv");
    fs::write(&path, bytes).unwrap();
    Table::open(&path)
}

#[test]
fn csv_is_read_as_spreadsheets_write_it() {
    let utf16 = |text: &str| {
        let units = text.encode_utf16().flat_map(u16::to_le_bytes);
        [0xff, 0xfe].into_iter().chain(units).collect::<Vec<u8>>()
    };
    for bytes in [
        b"path,label\na,x\nb,y\n".to_vec(),
        b"path,label\r\na,x\r\nb,y".to_vec(),
        b"path;label\na;x\nb;y\n\n".to_vec(),
        b"path\tlabel\na\tx\n\nb\ty\n".to_vec(),
        b"path|label\na|x\nb|y\n".to_vec(),
        b" path , label \n a , x \nb ,y\n".to_vec(),
        b"\xef\xbb\xbfpath,label\na,x\nb,y\n".to_vec(),
        b"sep=;\r\npath;label\r\na;x\r\nb;y\r\n".to_vec(),
        b"\"path\",\"label\"\n\"a\",\"x\"\n\"b\",\"y\"\n".to_vec(),
        b"\"path\";\"a, b\";\"label\"\na;\"1,2\";x\nb;;y\n".to_vec(),
        b"path,label,\na,x,\nb,y,\n".to_vec(),
        utf16("path,label\na,x\nb,y\n"),
    ] {
        let table = csv(&bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert_eq!(
            table.text("path").unwrap(),
            Some(texts(&[Some("a"), Some("b")])),
            "{text}"
        );
        assert_eq!(
            table.text("label").unwrap(),
            Some(texts(&[Some("x"), Some("y")])),
            "{text}"
        );
    }
    let one = csv(b"path\na, b.png\n\"c;d\"\n").unwrap();
    assert_eq!(
        one.text("path").unwrap(),
        Some(texts(&[Some("a, b.png"), Some("c;d")]))
    );
    let short = csv(b"path,label\na\nb,\n").unwrap();
    assert_eq!(short.text("label").unwrap(), Some(texts(&[None, None])));
    let broken = csv(b"path,other\na,\xff\n").unwrap();
    assert_eq!(
        broken.text("path").unwrap(),
        Some(texts(&[Some("a")])),
        "the other is not read"
    );
    assert!(message(broken.text("other")).contains("line 2, column `other`: bytes that are not UTF-8"));
}

#[test]
fn csv_that_cannot_be_read_says_why() {
    let error_of = |bytes: &[u8]| message(csv(bytes).and_then(|table| table.text("path")));
    assert!(
        error_of(b"path,label\na,b,c\n").contains("line 2: expected 2 fields as in the first line, found 3")
    );
    assert!(error_of(b"path,path\na,b\n").contains("found two of that name"));
    assert!(error_of(b"").contains("names the columns"));
    assert!(error_of(b"\n\n").contains("names the columns"));
    assert!(error_of(b"p\0a\0t\0h\0").contains("byte-order mark"));
    assert!(error_of(b"\xff\xfep\0a\0t").contains("UTF-16"));
    assert!(error_of(b"\x1f\x8b\x08").contains("gzip"));
}

/// Bytes changed, runs of bytes overwritten, and ends cut off, the same ones in every run of the tests.
fn mutations(whole: &[u8], count: u64) -> impl Iterator<Item = Vec<u8>> + '_ {
    use rand::{Rng as _, SeedableRng as _};
    (0..count).map(move |seed| {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut bytes = whole.to_vec();
        match seed % 4 {
            0 => bytes.truncate(random.random_range(0..bytes.len())),
            1 => {
                let at = random.random_range(0..bytes.len());
                let end = (at + 16).min(bytes.len());
                bytes[at..end].fill(random.random());
            }
            // Where the file says of itself what it holds.
            2 => {
                let from = bytes.len() * 3 / 4;
                let at = random.random_range(from..bytes.len());
                bytes[at] = random.random();
            }
            _ => {
                let at = random.random_range(0..bytes.len());
                bytes[at] ^= 1 << random.random_range(0..8);
            }
        }
        bytes
    })
}

/// Whatever damage does, an answer comes: values, or an error of one line that names the file. A panic would end the test.
#[test]
fn damaged_parquet_is_an_error_of_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.parquet");
    let (mut refused, mut read) = (0, 0);
    for name in [
        "types.parquet",
        "classes.parquet",
        "elsewhere.parquet",
        "list_categorical.parquet",
        "list_decimal.parquet",
    ] {
        for bytes in mutations(&fs::read(fixture(name)).unwrap(), 300) {
            fs::write(&path, &bytes).unwrap();
            for outcome in [
                read_wholly(&path),
                read_own(&path, None).map(drop),
                own_columns(&path).map(drop),
            ] {
                match outcome {
                    Ok(()) => read += 1,
                    Err(error) => {
                        let text = error.to_string();
                        assert!(
                            text.contains("damaged.parquet") && text.lines().count() == 1,
                            "{text}"
                        );
                        refused += 1;
                    }
                }
            }
        }
    }
    assert!(refused > 500 && read > 500, "{refused} refused, {read} read");
}

/// Everything of a Parquet file, by both readers.
fn read_wholly(path: &Path) -> Result<()> {
    let table = ParquetTable::open(path)?;
    let names: Vec<String> = table.names().into_iter().map(str::to_owned).collect();
    for name in &names {
        match table.kind(name) {
            Some(Kind::Value | Kind::Text | Kind::Bytes) => drop(table.text(name)?),
            Some(Kind::Image) => {
                for group in 0..table.group_sizes().len() {
                    table.images(name, group)?;
                }
            }
            Some(Kind::Nested) | None => {}
        }
    }
    Ok(())
}

/// A number in a file may be any other. The reader used to reserve room for 2^57 values, which ends the process.
#[test]
fn no_number_in_a_parquet_file_ends_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("claims.parquet");
    let numbers = [0, (1 << 31) - 1, 1 << 34, 1 << 57, u64::MAX];
    let mut refused = 0;
    for name in [
        "types.parquet",
        "classes.parquet",
        "list_decimal.parquet",
        "delta.parquet",
    ] {
        let whole = fs::read(fixture(name)).unwrap();
        let (body, tail) = whole.split_at(whole.len() - 8);
        let footer = u32::from_le_bytes(tail[..4].try_into().unwrap()) as usize;
        let start = body.len() - footer;
        // The pages' heads are small enough to try them all; of long footers every seventh byte.
        let places = (4..start.min(1_200)).chain((start..body.len()).step_by(footer.div_ceil(400)));
        for (place, &number) in places.flat_map(|place| numbers.iter().map(move |number| (place, number))) {
            let mut varint = Vec::new();
            prost::encoding::encode_varint(number, &mut varint);
            let longer = varint.len() - 1;
            let mut bytes = body.to_vec();
            bytes.splice(place..=place, varint);
            let footer = if place < start { footer } else { footer + longer };
            bytes.extend((footer as u32).to_le_bytes());
            bytes.extend(PARQUET_MAGIC);
            fs::write(&path, &bytes).unwrap();
            for outcome in [read_wholly(&path), read_own(&path, None).map(drop)] {
                if let Err(error) = outcome {
                    assert!(error.to_string().contains("claims.parquet"), "{error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 5_000, "{refused}");
}

#[test]
fn delta_encoded_columns_are_read() {
    let table = Table::open(&fixture("delta.parquet")).unwrap();
    let expected = |value: fn(usize) -> String| (0..300).map(|row| Some(value(row))).collect::<Vec<_>>();
    for (column, value) in [
        ("number", (|row| (row * row).to_string()) as fn(usize) -> String),
        ("lengths", |row| "ab".repeat(1 + row % 5)),
        ("prefixes", |row| format!("folder/{row:04}.png")),
    ] {
        assert_eq!(table.text(column).unwrap().unwrap(), expected(value), "{column}");
    }
}

#[test]
fn vectors_are_lists_of_fractions() {
    for (name, rows) in [("classes", 31), ("captions", 89)] {
        let file = fixture("../text").join(format!("{name}.parquet"));
        let found = ParquetTable::open(&file).unwrap().vectors("vector").unwrap();
        assert_eq!((found.rows, found.width, found.values.len()), (rows, 8, 8 * rows));
    }
    let table = ParquetTable::open(&fixture("types.parquet")).unwrap();
    let text = message(table.vectors("list"));
    assert!(
        text.contains("column `list`, row 0: expected a list of numbers"),
        "{text}"
    );
    assert!(text.contains("Int64; f32 and f64 are read"), "{text}");
    let text = message(table.vectors("float"));
    assert!(text.contains("found values of type Float32"), "{text}");
}
