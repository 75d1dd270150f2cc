//! Image data: verified, resumable, bounded.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use luc_sync::blob::{BlobError, Blobs, CHUNK};

fn data(chunks: usize) -> Vec<u8> {
    let size = usize::try_from(CHUNK).unwrap() * chunks + 1234;
    (0..size).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect()
}

fn store(dir: &std::path::Path, name: &str) -> Blobs {
    Blobs::open(&dir.join(name)).unwrap()
}

#[tokio::test]
async fn a_fetch_that_broke_off_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (store(dir.path(), "from"), store(dir.path(), "to"));
    let data = data(4);
    let (stored, _) = from.put(&data[..], 1 << 30, 1).await.unwrap();
    let manifest = from.manifest(&stored.blob).await.unwrap();
    let cut = usize::try_from(CHUNK).unwrap() * 2 + 77;
    let broken = to.take(&stored.blob, &manifest, 0, &mut &data[..cut]).await;
    assert!(matches!(broken, Err(BlobError::Broken(_))), "{broken:?}");
    assert!(to.path(&stored.blob).is_none(), "half a blob is none");
    let resume = to.resume(&stored.blob, &manifest).await.unwrap();
    assert_eq!(resume, 2);
    let rest = usize::try_from(CHUNK * resume).unwrap();
    let path = to.take(&stored.blob, &manifest, resume, &mut &data[rest..]).await.unwrap();
    assert!(std::fs::read(path).unwrap() == data);
    assert!(to.transfers().is_empty());
}

#[tokio::test]
async fn what_is_not_what_its_name_says_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (store(dir.path(), "from"), store(dir.path(), "to"));
    let mut data = data(2);
    let (stored, _) = from.put(&data[..], 1 << 30, 1).await.unwrap();
    let manifest = from.manifest(&stored.blob).await.unwrap();
    let last = data.len() - 1;
    data[last] ^= 1;
    let refused = to.take(&stored.blob, &manifest, 0, &mut &data[..]).await;
    assert!(matches!(refused, Err(BlobError::Corrupt(_))), "{refused:?}");
    assert!(to.path(&stored.blob).is_none());
    // A manifest for other data, under this name.
    let mut forged = manifest.clone();
    forged.chunks.reverse();
    let refused = to.take(&stored.blob, &forged, 0, &mut &data[..]).await;
    assert!(matches!(refused, Err(BlobError::Corrupt(_))), "{refused:?}");
    // What lies on the disk after a power cut is hashed again.
    let partial = dir.path().join("to").join(format!("{}.partial", stored.blob));
    std::fs::write(&partial, vec![0; usize::try_from(2 * CHUNK).unwrap()]).unwrap();
    assert_eq!(to.resume(&stored.blob, &manifest).await.unwrap(), 0);
}

#[tokio::test]
async fn an_upload_that_fails_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = store(dir.path(), "blobs");
    let too_large = blobs.put(&data(2)[..], CHUNK, 1).await;
    assert!(matches!(too_large, Err(BlobError::TooLarge(_))), "{too_large:?}");
    assert_eq!(std::fs::read_dir(dir.path().join("blobs")).unwrap().count(), 0);
    std::fs::write(dir.path().join("blobs/upload-00"), b"left by a crash").unwrap();
    let blobs = store(dir.path(), "blobs");
    assert_eq!(std::fs::read_dir(dir.path().join("blobs")).unwrap().count(), 0);
    for name in ["../store.redb", "", "AB", &"g".repeat(64)] {
        assert!(blobs.path(name).is_none(), "{name:?}");
        let removed = blobs.remove_unless(name, |_| false).await;
        assert!(matches!(removed, Err(BlobError::Name(_))), "{name:?}");
    }
    let (stored, _) = blobs.put(&b""[..], 10, 2).await.unwrap();
    assert_eq!((stored.size, stored.md5.as_str()), (0, "d41d8cd98f00b204e9800998ecf8427e"));
}

#[tokio::test]
async fn data_that_was_whole_when_its_fetch_broke_off_is_not_made_longer() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (store(dir.path(), "from"), store(dir.path(), "to"));
    let data = data(2);
    let (stored, _) = from.put(&data[..], 1 << 30, 1).await.unwrap();
    let manifest = from.manifest(&stored.blob).await.unwrap();
    // All chunks arrived, the short one too; then the process died.
    std::fs::write(dir.path().join("to").join(format!("{}.partial", stored.blob)), &data).unwrap();
    let resume = to.resume(&stored.blob, &manifest).await.unwrap();
    assert_eq!(resume, 3);
    let path = to.take(&stored.blob, &manifest, resume, &mut tokio::io::empty()).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap().len(), data.len());
}

#[tokio::test(start_paused = true)]
async fn a_source_that_falls_silent_is_given_up_and_what_it_gave_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (store(dir.path(), "from"), store(dir.path(), "to"));
    let data = data(2);
    let (stored, _) = from.put(&data[..], 1 << 30, 1).await.unwrap();
    let manifest = from.manifest(&stored.blob).await.unwrap();
    let (mut source, mut stream) = tokio::io::duplex(4 << 20);
    tokio::io::AsyncWriteExt::write_all(&mut source, &data[..usize::try_from(CHUNK).unwrap() + 5]).await.unwrap();
    let silent = to.take(&stored.blob, &manifest, 0, &mut stream).await;
    assert!(matches!(silent, Err(BlobError::Broken(_))), "{silent:?}");
    assert_eq!(to.resume(&stored.blob, &manifest).await.unwrap(), 1);
}

#[tokio::test]
async fn turns_are_taken_one_by_one_and_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = store(dir.path(), "blobs");
    let first = blobs.turn("a").await;
    let second = tokio::spawn({
        let blobs = blobs.clone();
        async move { blobs.turn("a").await }
    });
    tokio::task::yield_now().await;
    assert!(!second.is_finished());
    drop(first);
    drop(second.await.unwrap());
    drop(blobs.turn("b").await);
    let other = blobs.turn("c").await;
    assert_eq!(blobs.waited_for(), 1);
    drop(other);
    assert_eq!(blobs.waited_for(), 0);
}

/// Were each to try for itself, the last of many would wait for as long as all of them take.
#[tokio::test]
async fn a_fetch_that_fails_fails_for_all_who_waited_and_for_nobody_later() {
    let dir = tempfile::tempdir().unwrap();
    let (blobs, blob) = (store(dir.path(), "blobs"), "0".repeat(64));
    let asked = AtomicUsize::new(0);
    let fetch = || async {
        asked.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(BlobError::OutOfReach("nobody is there".into()))
    };
    let all = join_all((0..3).map(|_| blobs.fetched(&blob, fetch()))).await;
    assert!(all.iter().all(|one| matches!(one, Err(BlobError::OutOfReach(_)))), "{all:?}");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert!(blobs.fetched(&blob, fetch()).await.is_err());
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    assert_eq!(blobs.waited_for(), 0);
}

#[tokio::test]
async fn what_nothing_needs_is_removed_once_nobody_has_touched_it_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = store(dir.path(), "a");
    let hour = Duration::from_secs(3_600);
    let age = |blob: &str, by: Duration| {
        for suffix in ["", ".manifest"] {
            let file = std::fs::File::open(dir.path().join("a").join(format!("{blob}{suffix}"))).unwrap();
            file.set_modified(SystemTime::now() - by).unwrap();
        }
    };
    let mut stored = Vec::new();
    for byte in 0..5 {
        let (one, turn) = blobs.put(&[byte][..], 10, byte.into()).await.unwrap();
        blobs.remove_unless(&one.blob, |_| false).await.unwrap();
        assert!(blobs.path(&one.blob).is_some(), "it is not said yet what it is for");
        drop(turn);
        age(&one.blob, hour * 2);
        stored.push(one.blob);
    }
    let [needed, fetched, young, idle, again] = stored.as_slice() else { panic!() };
    age(young, hour / 2);
    let turn = blobs.turn(fetched).await;
    let (_, upload) = blobs.put(&[4][..], 10, 9).await.unwrap();
    assert_eq!(blobs.remove_idle(hour, |blob| blob == needed).await.unwrap(), 1);
    let kept = |blob: &String| blobs.path(blob).is_some();
    assert!([needed, fetched, young, again].into_iter().all(kept) && !kept(idle));
    assert!(!dir.path().join("a").join(format!("{idle}.manifest")).exists());
    drop((turn, upload));
    // A clock that was set back is no reason.
    let ahead = std::fs::File::open(blobs.path(young).unwrap()).unwrap();
    ahead.set_modified(SystemTime::now() + hour).unwrap();
    assert_eq!(blobs.remove_idle(hour, |blob| blob == needed).await.unwrap(), 1);
    assert!([needed, young, again].into_iter().all(kept) && !kept(fetched));
    blobs.remove_unless(again, |_| false).await.unwrap();
    assert!(!kept(again), "asked for, it goes at once");
    assert_eq!(blobs.waited_for(), 0);
}
