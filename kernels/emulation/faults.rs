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

const SILU: &[&str] = &["(silu,"];
const NORM: &[&str] = &["(bf16)"];
const KV_WRITE: &[&str] = &[", 2)"];
const LINEAR: &[&str] = &["(bf16)"];
const LINEAR_PLAIN: &[&str] = &["EACH_PLAIN(f32)"];
const DECODE: &[&str] = &["EACH_DECODE(bf16, 1, 4)", "EACH_MERGE(bf16)"];
const SAMPLE: &[&str] = &["(f32)"];
const ROWS: &[&str] = &["EACH_ROWS(bf16, 1)"];
const ALIGNMENT: &[&str] = &["(bf16)"];
const TILES: &[&str] = &["EACH_TILES(bf16, 64)"];

/// All of them.
pub const FAULTS: &[Fault] = &[
    fault("activation", "activation_forgets_the_sign", SILU, "expf(-y)", "expf(y)"),
    fault(
        "activation",
        "activation_is_cut_off",
        &["(gelu,"],
        "x * normcdff(x)",
        "(x < -3.f ? 0.f : x * normcdff(x))",
    ),
    fault("activation", "activation_has_half_the_slope", &["(gelu_tanh,"], "1.5957691216f", "0.7978845608f"),
    fault(
        "alignment",
        "alignment_starts_too_early",
        ALIGNMENT,
        "__syncthreads();  // the queries are there",
        "",
    ),
    fault(
        "alignment",
        "alignment_shares_too_early",
        ALIGNMENT,
        "__syncthreads();  // all scores are there",
        "",
    ),
    fault(
        "alignment",
        "alignment_trusts_pages",
        ALIGNMENT,
        "if (page >= unsigned(sizes.page_count)) __trap();",
        "",
    ),
    fault(
        "alignment",
        "alignment_takes_the_next_head",
        ALIGNMENT,
        "(slot * sizes.heads + head)",
        "(slot * sizes.heads + blockIdx.y)",
    ),
    fault("alignment", "alignment_forgets_the_first", ALIGNMENT, "mean /= rows;", "mean = 0.;"),
    fault(
        "alignment",
        "alignment_mirrors_the_edge",
        ALIGNMENT,
        "2 * (frames - 1) - at",
        "2 * frames - 1 - at",
    ),
    fault("alignment", "alignment_writes_all_rows", ALIGNMENT, "if (row < mine) map", "map"),
    fault("alignment", "alignment_median_is_off", ALIGNMENT, "return v[HALF];", "return v[HALF + 1];"),
    fault("activation", "activation_is_silu", &["(quick_gelu,"], "1.702f * x", "x"),
    fault("activation", "activation_runs_over_the_end", SILU, "if (at >= count) return;", ""),
    fault(
        "activation",
        "activation_leaves_out_the_last",
        SILU,
        "if (at >= count) return;",
        "if (at + N >= count) return;",
    ),
    fault("activation", "gated_runs_over_the_row", SILU, "if (at >= width) return;", ""),
    fault(
        "activation",
        "gated_rounds_once",
        SILU,
        "to_f(from_f<T>(Act::at(value[j]))) * up[j]",
        "Act::at(value[j]) * up[j]",
    ),
    fault(
        "activation",
        "gated_swaps_the_halves",
        SILU,
        "Act::at(value[j]))) * up[j]",
        "Act::at(up[j]))) * value[j]",
    ),
    fault(
        "activation",
        "gated_reads_rows_too_near",
        SILU,
        "both + blockIdx.x * 2 * width",
        "both + blockIdx.x * width",
    ),
    fault("activation", "gated_reads_the_gate_twice", SILU, "gate + width + at", "gate + at"),
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
        "linear",
        "linear_fetches_into_what_is_read",
        LINEAR,
        "__syncthreads();  // this stage has arrived for all, and all have read the one that is fetched into next\n",
        "\n",
    ),
    fault(
        "linear",
        "linear_waits_for_too_little",
        LINEAR,
        "cp_async_wait<STAGES - 2>",
        "cp_async_wait<STAGES - 1>",
    ),
    fault(
        "linear",
        "linear_reads_behind_the_input",
        LINEAR,
        "there ? 16 : 0);",
        "at < (of_x ? rows : output) ? 16 : 0);",
    ),
    fault(
        "linear",
        "linear_reads_behind_the_rows",
        LINEAR,
        "< (of_x ? rows : output) && column",
        "< rows && column",
    ),
    fault("linear", "linear_swaps_chunks", LINEAR, "lane / 8 % 2));", "lane / 16 % 2));"),
    fault(
        "linear",
        "linear_bias_is_off_by_one",
        LINEAR,
        "to_f(bias[column]) : 0.f, bias && two",
        "to_f(bias[column + 1]) : 0.f, bias && two",
    ),
    fault(
        "log_mel",
        "mel_reads_too_early",
        &[],
        "__syncthreads();  // the folded frames and the table are there",
        "",
    ),
    fault("log_mel", "mel_filters_too_early", &[], "__syncthreads();  // the spectra are there", ""),
    fault("log_mel", "mel_repeats_the_first_sample", &[], "at < 0 ? -at : at", "at < 0 ? -at - 1 : at"),
    fault("log_mel", "mel_reads_behind_the_end", &[], "of < frames && mirrored < count", "of < frames"),
    fault("log_mel", "mel_folds_the_middle", &[], "n % FOLDED ? sample", "n ? sample"),
    fault("resize", "resize_rounds_down", &[], "sum[c] = (1 << (BITS - 1)) + ", "sum[c] = "),
    fault("resize", "resize_wraps_levels", &[], "min(max(sum[c] >> BITS, 0), 255)", "sum[c] >> BITS"),
    fault("resize", "resize_forgets_the_first_row", &[], "own.start - first : 0", "own.start : 0"),
    fault("resize", "resize_runs_over_the_width", &[], "if (column >= width) return;", ""),
    fault("resize", "normalise_swaps_channels", &[], "table[c * 256", "table[(2 - c) * 256"),
    fault(
        "linear",
        "linear_plain_reads_too_early",
        LINEAR_PLAIN,
        "__syncthreads();  // the step is there",
        "",
    ),
    fault("linear", "linear_plain_overwrites", LINEAR_PLAIN, "__syncthreads();  // the step is read", ""),
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
    fault(
        "sample",
        "sample_joins_too_early",
        SAMPLE,
        "shared.parts[warp] = value;\n  __syncthreads();",
        "shared.parts[warp] = value;\n",
    ),
    fault("sample", "sample_counts_too_early", SAMPLE, "__syncthreads();  // the bins are full", ""),
    fault(
        "sample",
        "sample_mixes_penalties_and_bias",
        SAMPLE,
        "__syncthreads();  // penalties come before bias",
        "",
    ),
    fault("sample", "sample_is_off_by_one", SAMPLE, "id += upto <= left;", "id += upto < left;"),
    fault("sample", "sample_forgets_a_tie", SAMPLE, "id <= last);", "id < last);"),
    fault("sample", "sample_takes_the_last_of_equals", SAMPLE, "<< 32 | ~id", "<< 32 | id"),
    fault(
        "sample",
        "sample_draws_padding",
        SAMPLE,
        "int(draw.vocabulary);\n  float *to",
        "width;\n  float *to",
    ),
    fault("sample", "sample_rewards_what_was_seen", SAMPLE, "x = x > 0.f ?", "x = x < 0.f ?"),
    fault("sample", "sample_shares_too_little", SAMPLE, "- cut.above + value - 1)", "- cut.above)"),
    fault("sample", "sample_feeds_the_same_rows", SAMPLE, "out[from[i]].id", "out[i % 5].id"),
    fault("sample", "sample_feeds_a_block", SAMPLE, "i < rows; i += blockDim.x) words", "i < 1; i++) words"),
    fault("sample", "sample_allows_what_a_mask_lacks", SAMPLE, "id / 32 >= draw.mask_count || ", ""),
];
