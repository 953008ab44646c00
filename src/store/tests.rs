//! What a store keeps, what it refuses, and what it leaves alone.

use std::{path::Path, time::Duration};

use futures_util::{StreamExt as _, future::join_all};
use object_store::{ObjectStore, ObjectStoreExt as _, memory::InMemory, path::Path as Name};
use tempfile::TempDir;

use super::*;

const DIGITS: &str = "0123456789abcdef0123456789abcdef";

fn open(folder: &Path) -> Store {
    Store::open(&StoreConfig { folder: folder.to_owned(), bucket: None }).unwrap()
}

fn owner(tenant: &str) -> Owner {
    Owner { tenant: Some(tenant.to_owned()), key: None }
}

fn content(bytes: &[u8]) -> fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    io::Seek::rewind(&mut file).unwrap();
    file
}

fn file() -> NewFile {
    NewFile { prefix: "file-", purpose: "batch".into(), name: "x".into(), ..NewFile::default() }
}

fn hidden() -> NewFile {
    NewFile { prefix: "file_", hidden: true, ..file() }
}

fn batch() -> NewBatch {
    NewBatch {
        prefix: "batch_",
        endpoint: "/v1/chat/completions".into(),
        window: "24h".into(),
        metadata: None,
        output_expires: None,
        seconds: 3600,
        total: 0,
        most_open: 1000,
    }
}

async fn read(store: &Store, id: &str) -> Vec<u8> {
    let pieces: Vec<_> = store.content(id, None).await.unwrap().collect().await;
    pieces.into_iter().flat_map(|piece| piece.unwrap()).collect()
}

/// Names in the folder of contents.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("files")).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

async fn count(store: &Store, query: &'static str) -> i64 {
    store.transact(move |database| Ok(database.query_row(query, (), |row| row.get(0))?)).await.unwrap()
}

#[tokio::test]
async fn a_folder_from_before_contents_had_names_is_gone_on_with() {
    let folder = TempDir::new().unwrap();
    let (kept, part) = (format!("file-{DIGITS}"), format!("file_{DIGITS}"));
    fs::create_dir(folder.path().join("files")).unwrap();
    for id in [&kept, &part] {
        fs::write(folder.path().join("files").join(id), "as it was").unwrap();
    }
    let database = Connection::open(folder.path().join("percept.sqlite")).unwrap();
    database.execute_batch(&format!("{TABLES} PRAGMA user_version = 1;")).unwrap();
    let insert = "INSERT INTO files (id, tenant, purpose, name, mime, bytes, created, hidden) \
                  VALUES (?1, 'a', 'batch', 'x', '', 9, 1, ?2)";
    database.execute(insert, (&kept, false)).unwrap();
    // The input of a batch that was never noted: the program ended before.
    database.execute(insert, (&part, true)).unwrap();
    drop(database);
    for _ in 0..2 {
        let store = open(folder.path());
        store.sweep().await.unwrap();
        assert_eq!(read(&store, &kept).await, b"as it was");
        assert_eq!(names(folder.path()), [kept.as_str()]);
    }
    let store = open(folder.path());
    let new = store.add_file(&owner("a"), file(), content(b"new")).await.unwrap();
    assert_eq!(read(&store, &new.id).await, b"new");
    assert_eq!(store.remove_file(&owner("a"), &kept).await.unwrap(), Removed::Yes);
    assert_eq!(names(folder.path()), [new.id]);
    drop(store);
    let database = Connection::open(folder.path().join("percept.sqlite")).unwrap();
    database.execute_batch("PRAGMA user_version = 99;").unwrap();
    drop(database);
    let error = Store::open(&StoreConfig { folder: folder.path().to_owned(), bucket: None }).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
}

#[tokio::test]
async fn a_bucket_keeps_what_is_not_this_stores() {
    let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let shared = |folder: &Path, id: &str| Store {
        blobs: Blobs::shared(Arc::clone(&objects), id.into()),
        ..open(folder)
    };
    let (mut store, mut other) = (shared(folder.path(), "one"), shared(other.path(), "two"));
    let kept = store.add_file(&owner("a"), file(), content(b"kept")).await.unwrap();
    let theirs = other.add_file(&owner("a"), file(), content(b"theirs")).await.unwrap();
    let unknown = format!("one/file_{DIGITS}");
    let foreign = [
        "notes.txt".to_owned(),
        format!("file-{DIGITS}"),
        "one/notes.txt".to_owned(),
        format!("one/more/file-{DIGITS}"),
        format!("onefile-{DIGITS}"),
        format!("three/file-{DIGITS}"),
    ];
    for name in foreign.iter().chain([&unknown]) {
        objects.put(&Name::from(name.as_str()), "x".into()).await.unwrap();
    }
    // By the bucket's clock it could be of another life of this server's that has not ended.
    assert_eq!(store.sweep().await.unwrap(), 0);
    let later = SystemTime::now() + Duration::from_secs(2 * 3600);
    (store.opened, other.opened) = (later, later);
    assert_eq!((store.sweep().await.unwrap(), other.sweep().await.unwrap()), (1, 0));
    let mut left: Vec<String> =
        objects.list(None).map(|found| found.unwrap().location.to_string()).collect().await;
    left.sort();
    let mut expected =
        [foreign.to_vec(), vec![format!("one/{}", kept.id), format!("two/{}", theirs.id)]].concat();
    expected.sort();
    assert_eq!(left, expected);
    assert_eq!(read(&store, &kept.id).await, b"kept");
    assert_eq!(store.remove_file(&owner("a"), &kept.id).await.unwrap(), Removed::Yes);
    assert!(objects.head(&Name::from(format!("one/{}", kept.id))).await.is_err(), "its content is there");
}

#[tokio::test]
async fn a_folder_keeps_what_its_database_could_not_know() {
    let folder = TempDir::new().unwrap();
    let files = folder.path().join("files");
    fs::create_dir(&files).unwrap();
    // Its database was lost, and may be found again.
    let old = files.join(format!("file-{DIGITS}"));
    fs::write(&old, "old").unwrap();
    let before = SystemTime::now() - Duration::from_secs(3600);
    fs::File::options().write(true).open(&old).unwrap().set_modified(before).unwrap();
    for name in ["notes.txt", "notes#1.txt", &format!("file_{DIGITS}#1"), &format!("file_{DIGITS}")] {
        fs::write(files.join(name), "x").unwrap();
    }
    let mut store = open(folder.path());
    store.opened = SystemTime::now() + Duration::from_secs(1);
    assert_eq!(store.sweep().await.unwrap(), 1);
    assert_eq!(names(folder.path()), [format!("file-{DIGITS}"), "notes#1.txt".into(), "notes.txt".into()]);
}

#[tokio::test]
async fn there_is_room_for_no_more_than_there_is_room_for() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    let limited = NewFile { room: Some(1000), ..file() };
    let files = join_all((0..10).map(|_| {
        store.add_file(const { &Owner { tenant: None, key: None } }, limited.clone(), content(&[0; 400]))
    }));
    let files = files.await;
    assert_eq!(files.iter().filter(|file| file.is_ok()).count(), 2);
    let full = files.iter().filter(|file| matches!(file, Err(StoreError::Full { used: 800, limit: 1000 })));
    assert_eq!(full.count(), 8);
    assert_eq!(names(folder.path()).len(), 2, "the content of what was refused is there");

    let all = owner("a");
    let input = store.add_file(&all, file(), content(b"x")).await.unwrap().id;
    let few = NewBatch { most_open: 3, ..batch() };
    let batches = join_all((0..10).map(|_| store.add_batch(&all, &input, few.clone()))).await;
    assert_eq!(batches.iter().filter(|batch| batch.is_ok()).count(), 3);
    let with_inputs =
        join_all((0..5).map(|_| store.add_batch_of(&all, hidden(), content(b"x"), few.clone()))).await;
    assert!(with_inputs.iter().all(|batch| matches!(batch, Err(StoreError::TooManyBatches { limit: 3 }))));
    assert_eq!(names(folder.path()).len(), 3, "the input of a batch that was refused is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_there_with_its_input_or_not_at_all() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    let all = owner("a");
    // Clients leave at any point.
    for micros in 0..40 {
        let adding = store.add_batch_of(&all, hidden(), content(&[7; 5000]), batch());
        let _ = tokio::time::timeout(Duration::from_micros(micros * 250), adding).await;
    }
    store.add_batch_of(&all, hidden(), content(b"x"), batch()).await.unwrap();
    let unnamed = "SELECT count(*) FROM files WHERE id NOT IN (SELECT input FROM batches)";
    for _ in 0..500 {
        if names(folder.path()).len() as i64 == count(&store, "SELECT count(*) FROM files").await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(count(&store, unnamed).await, 0);
    assert_eq!(names(folder.path()).len() as i64, count(&store, "SELECT count(*) FROM batches").await);
    // What fails has no use for its input, and nobody could remove it.
    for number in store.open_batches().await.unwrap() {
        store.fail_batch(number, "{}".into()).await.unwrap();
    }
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[tokio::test]
async fn everything_goes_whose_time_has_come() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    let all = owner("a");
    let expired = NewFile { expires: Some(now() - 1), ..file() };
    let mut last = String::new();
    for _ in 0..120 {
        last = store.add_file(&all, expired.clone(), content(b"x")).await.unwrap().id;
    }
    // This one cannot be removed.
    let stubborn = folder.path().join("files").join(&last);
    fs::remove_file(&stubborn).unwrap();
    fs::create_dir(&stubborn).unwrap();
    fs::write(stubborn.join("x"), "x").unwrap();
    assert_eq!(store.expire_files().await.unwrap(), 120);
    assert_eq!(names(folder.path()), [last]);

    let kept = store.add_file(&all, file(), content(b"x")).await.unwrap().id;
    for _ in 0..110 {
        let number = store.add_batch(&all, &kept, batch()).await.unwrap().unwrap().number;
        store.fail_batch(number, "{}".into()).await.unwrap();
    }
    let open = store.add_batch(&all, &kept, batch()).await.unwrap().unwrap();
    assert_eq!(store.expire_batches().await.unwrap(), 0);
    let age = "UPDATE batches SET ended = ended - ?1";
    store.transact(move |database| Ok(database.execute(age, (KEPT_SECONDS + 1,))?)).await.unwrap();
    assert_eq!(store.expire_batches().await.unwrap(), 110);
    assert_eq!(store.open_batches().await.unwrap(), [open.number]);
    assert!(store.file(&all, &kept, false).await.unwrap().is_some(), "a file went that is nobody's part");
}

#[tokio::test]
async fn results_are_read_by_bytes() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    let all = owner("a");
    let input = store.add_file(&all, file(), content(b"x")).await.unwrap().id;
    let number = store.add_batch(&all, &input, batch()).await.unwrap().unwrap().number;
    let place = Place { start: 0, length: 1 };
    let lines = (0..12).map(|index| NewLine { custom_id: format!("l{index}"), place }).collect();
    store.begin_batch(number, lines).await.unwrap();
    for line in 0..12 {
        let bytes = if line == 0 { 9 << 20 } else { 1 << 20 };
        let result = "x".repeat(bytes).into();
        let outcome = Outcome { state: LineState::Succeeded, result, tokens: Tokens::default() };
        store.finish_line(number, line, outcome).await.unwrap();
    }
    let mut pages = Vec::new();
    let mut behind = -1;
    loop {
        let page = store.results(number, behind, 200).await.unwrap();
        let Some(last) = page.last() else { break };
        behind = last.number;
        pages.push(page.len());
    }
    assert_eq!(pages, [1, 4, 4, 3]);
}

#[tokio::test]
async fn nobody_hears_of_others_batches() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    let (all, other) = (owner("a"), owner("b"));
    let input = store.add_file(&all, file(), content(b"x")).await.unwrap().id;
    let batch_of_it = store.add_batch(&all, &input, batch()).await.unwrap().unwrap().id;
    assert_eq!(store.remove_file(&other, &input).await.unwrap(), Removed::NotThere);
    assert_eq!(store.remove_file(&all, &input).await.unwrap(), Removed::Needed { batch: batch_of_it });
    let part = store.add_batch_of(&all, hidden(), content(b"x"), batch()).await.unwrap().input;
    assert_eq!(store.remove_file(&all, &part).await.unwrap(), Removed::NotThere);
}
