//! Mistakes that are made in copies of the kernels on purpose: the tests must notice each of them.

/// One mistake.
#[derive(Debug)]
pub struct Fault {
    /// The kernel file, without its ending.
    pub file: &'static str,
    /// Kernels of the copy are found under `name:kernel`.
    pub name: &'static str,
    /// What the file says, once.
    pub right: &'static str,
    /// What the copy says instead.
    pub wrong: &'static str,
    /// Which of the `EACH_` lines the copy keeps: those that have one of these texts.
    pub kernels: &'static [&'static str],
}

const fn fault(
    file: &'static str,
    name: &'static str,
    kernels: &'static [&'static str],
    right: &'static str,
    wrong: &'static str,
) -> Fault {
    Fault { file, name, right, wrong, kernels }
}

const NORM: &[&str] = &["(bf16)"];
const KV_WRITE: &[&str] = &[", 2)"];
const DECODE: &[&str] = &["EACH_DECODE(bf16, 1, 4)", "EACH_MERGE(bf16)"];
const ROWS: &[&str] = &["EACH_ROWS(bf16, 1)"];
const TILES: &[&str] = &["EACH_TILES(bf16, 64)"];

/// All of them.
pub const FAULTS: &[Fault] = &[
    fault(
        "norm",
        "norm_reads_sums_too_early",
        NORM,
        "of_warp[warp] = value;\n  __syncthreads();",
        "of_warp[warp] = value;\n",
    ),
    fault("norm", "norm_overwrites_sums", NORM, "__syncthreads();  // the sums", "// the sums"),
    fault("norm", "norm_rounds_once", NORM, "to_f(from_f<T>(x * scale)) * weight", "x * scale * weight"),
    fault("norm", "norm_bias_is_off_by_one", NORM, "bias + i)", "bias + i + 1)"),
    fault("kv_write", "kv_write_is_one_too_long", KV_WRITE, "i < units", "i <= units"),
    fault("kv_write", "kv_write_trusts_slots", KV_WRITE, "if (slot >= cache_slots) __trap();", ""),
    fault(
        "kv_write",
        "kv_write_ignores_the_stride",
        KV_WRITE,
        "size_t(blockIdx.x) * stride",
        "size_t(blockIdx.x) * units",
    ),
    fault(
        "attention",
        "decode_joins_too_early",
        DECODE,
        "running.weight[g];\n  }\n  __syncthreads();",
        "running.weight[g];\n  }\n",
    ),
    fault(
        "attention",
        "decode_is_off_by_a_slot",
        DECODE,
        "position % page_size;",
        "(position + 1) % page_size;",
    ),
    fault(
        "attention",
        "decode_window_is_off_by_one",
        DECODE,
        "max(0, sequence.visible - int(window));",
        "max(0, sequence.visible - int(window) + 1);",
    ),
    fault(
        "attention",
        "decode_reads_a_split_too_many",
        DECODE,
        "visible + int(split_size) - 1",
        "visible + int(split_size)",
    ),
    fault(
        "attention",
        "rows_do_not_see_themselves",
        ROWS,
        "sequence.rows + row + 1 :",
        "sequence.rows + row :",
    ),
    fault("attention", "rows_trust_pages", ROWS, "if (page >= page_count) __trap();", ""),
    fault(
        "attention",
        "tiles_are_overwritten",
        TILES,
        "__syncthreads();  // the tile after",
        "// the tile after",
    ),
    fault("attention", "tiles_are_read_too_early", TILES, "cp_async_wait<1>();", "cp_async_wait<2>();"),
    fault(
        "attention",
        "tiles_do_not_see_themselves",
        TILES,
        "row[i >> 1] + ahead + 1 :",
        "row[i >> 1] + ahead :",
    ),
    fault("attention", "tiles_window_is_off_by_one", TILES, "position >= sees -", "position > sees -"),
];
