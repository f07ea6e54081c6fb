# Sourced by the scripts beside it: what they need of a machine that they know nothing of.

say() { echo "== $*"; }

# Whether the program is there.
has() { command -v "$1" >/dev/null 2>&1; }

# unpack BINARY: unpacks one that ends in .xz to ./macula, with xz or Python; its path in $binary.
unpack() {
    binary="$1"
    [[ "$binary" == *.xz ]] || return 0
    if [ ! -x ./macula ]; then
        if has xz; then
            xz -dc "$binary" >macula
        else
            "$python" -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' "$binary" >macula
        fi || { rm -f macula; say "$binary: cannot be unpacked"; return 1; }
        chmod +x macula
    fi
    binary="$PWD/macula"
}

# missing_libraries BINARY: the libraries that the loader does not find for it.
missing_libraries() { ldd "$1" 2>/dev/null | awk '/not found/ { print $1 }'; }

# find_libraries BINARY: adds to LD_LIBRARY_PATH, behind what is there, the folders that have what the loader lacks: of Python's
# nvidia packages, then of a toolkit. What is still missing is told, with the places that were looked at.
find_libraries() {
    local missing folders folder name
    missing="$(missing_libraries "$1")"
    [ -n "$missing" ] || return 0
    folders="$("$python" -c 'import glob, importlib.util, os
spec = importlib.util.find_spec("nvidia")
for place in spec.submodule_search_locations if spec else []:
    print(*glob.glob(os.path.join(place, "*", "lib")), sep="\n")' 2>/dev/null)"
    for folder in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda /usr/local/nvidia; do
        [ -z "$folder" ] || folders+=$'\n'"$folder/lib64"$'\n'"$folder/lib"
    done
    while read -r folder; do
        for name in $missing; do
            if [ -n "$folder" ] && [ -e "$folder/$name" ]; then
                LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder"
                break
            fi
        done
    done <<<"$folders"
    export LD_LIBRARY_PATH
    missing="$(missing_libraries "$1")"
    [ -n "$missing" ] || { say "LD_LIBRARY_PATH=$LD_LIBRARY_PATH"; return 0; }
    say "the loader does not find" $missing
    echo "looked in LD_LIBRARY_PATH (${LD_LIBRARY_PATH:-empty}), the system's folders, and:"
    echo "$folders" | sed '/^$/d; s/^/  /'
    return 1
}

# source_of DATA: DATA with an absolute path and without what no machine has, in $data: Fashion-MNIST where it lies, else the sample
# that macula brings.
source_of() {
    local kind path
    data="${1:-}"
    if [ -z "$data" ]; then
        data=idx:/usr/share/datasets/fashion-mnist
        [ -d "${data#*:}" ] || data=sample
        return 0
    fi
    [ "$data" = sample ] && return 0
    kind="" path="$data"
    [[ "$data" =~ ^[a-z]+: ]] && kind="${data%%:*}:" && path="${data#*:}"
    [ -e "$path" ] || { say "$data: expected a data set, found none"; return 1; }
    data="$kind$(realpath "$path")"
}

# rows PART: the rows of $data for `train` or `test`.
rows() { [ "$data" = sample ] && echo "sample:$1" || echo "$data#$1"; }

# number NAME FILE: the first number of that name in a JSON file.
number() { grep -o "\"$1\": *[0-9.e+-]*" "$2" 2>/dev/null | head -n 1 | sed "s/.*: *//"; }

# calculate EXPRESSION: by awk.
calculate() { awk "BEGIN { print $1 }" 2>/dev/null; }

# Of the table of `bench ops`, whose numbers with an exponent are errors and what is allowed of them:
# column OPERATION FILE: the error of its output;
column() { awk -v name="$1" '$0 ~ name { for (i = 1; i <= NF; i++) if ($i ~ /^[0-9.]+e[-+]?[0-9]+$/) { print $i; exit } }' "$2"; }
# worst FILE: the largest error as a share of what is allowed.
worst() {
    awk '{ n = 0; for (i = 1; i <= NF; i++) if ($i ~ /^[0-9.]+e[-+]?[0-9]+$/) v[++n] = $i
           if (n == 4) { a = v[1] / v[2]; b = v[3] / v[4]; if (a > m) m = a; if (b > m) m = b } } END { print m + 0 }' "$1"
}
