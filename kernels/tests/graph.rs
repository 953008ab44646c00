//! Memory that is written in place. Recordings themselves need a GPU: tests/cuda.rs.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use candle_core::{DType, Device, Tensor};
use percept_kernels::{record, records, rewrite};

#[test]
fn what_shares_memory_sees_it_rewritten() {
    let all = Tensor::from_vec((0u32..10).collect(), 10, &Device::Cpu).unwrap();
    let (first, second) = (all.narrow(0, 0, 4).unwrap(), all.narrow(0, 4, 6).unwrap());
    rewrite(&second, &[70, 71, 72]).unwrap();
    assert_eq!(second.to_vec1::<u32>().unwrap(), [70, 71, 72, 7, 8, 9]);
    assert_eq!(first.to_vec1::<u32>().unwrap(), [0, 1, 2, 3]);
    rewrite(&all, &[9; 10]).unwrap();
    assert_eq!(first.to_vec1::<u32>().unwrap(), [9; 4]);
    rewrite(&all, &[]).unwrap();
}

#[test]
fn what_does_not_fit_is_refused() {
    let numbers = Tensor::zeros((2, 3), DType::U32, &Device::Cpu).unwrap();
    let error = |tensor: &Tensor, count: usize| rewrite(tensor, &vec![1; count]).unwrap_err().to_string();
    assert!(error(&numbers, 7).contains("7 numbers for 6"));
    assert!(error(&numbers.t().unwrap(), 2).contains("contiguous"));
    assert!(error(&numbers.to_dtype(DType::F32).unwrap(), 2).contains("u32"));
    assert_eq!(numbers.flatten_all().unwrap().to_vec1::<u32>().unwrap(), [0; 6]);
}

#[test]
fn the_host_records_nothing() {
    assert!(!records(&Device::Cpu));
    let error = record(&Device::Cpu, || panic!("nothing is done")).unwrap_err();
    assert!(error.to_string().contains("only GPUs record"));
}
