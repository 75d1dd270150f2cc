//! The config-drive: an ISO 9660 file system labelled `config-2` that tells the guest who it is.
//!
//! It holds OpenStack's layout (`openstack/latest/…`), which cloud-init, cloudbase-init and others look for by that
//! label, and NoCloud's files (`meta-data`, `user-data`) at the root. NoCloud would look for the label `cidata`; a file
//! system has one label, and OpenStack's is the one that OpenStack's guests expect.
//!
//! The ISO is made by `xorriso`, as Nova has it made by `mkisofs`: names survive by Rock Ridge and Joliet.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use luc_engine::record::Server;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::tool::{self, Limits, ToolError};

/// The metadata version written beside `latest`: Nova's, with everything that is here.
const VERSION: &str = "2018-08-27";

/// Why there is no config-drive. What was there before still is.
#[derive(Debug, thiserror::Error)]
pub enum ConfigDriveError {
    /// The user data is not base64.
    #[error("the user data is not valid base64")]
    UserData,
    /// The disk failed or is full.
    #[error("the config-drive cannot be written")]
    Disk(#[from] io::Error),
    /// `xorriso` failed or is not installed.
    #[error("the config-drive cannot be made: {0}")]
    Tool(#[from] ToolError),
}

/// The files of a config-drive, by path.
///
/// # Errors
/// [`ConfigDriveError::UserData`].
pub fn files(
    id: Uuid,
    server: &Server,
    project_name: &str,
    site: &str,
    random_seed: &[u8],
) -> Result<Vec<(PathBuf, Vec<u8>)>, ConfigDriveError> {
    let user_data = STANDARD.decode(server.user_data.trim()).map_err(|_| ConfigDriveError::UserData)?;
    let meta_data = meta_data(id, server, project_name, site, random_seed).to_string().into_bytes();
    let network_data = json!({"links": [], "networks": [], "services": []}).to_string().into_bytes();
    let mut files = Vec::new();
    for version in ["latest", VERSION] {
        let dir = Path::new("openstack").join(version);
        files.push((dir.join("meta_data.json"), meta_data.clone()));
        files.push((dir.join("network_data.json"), network_data.clone()));
        files.push((dir.join("vendor_data.json"), b"{}".to_vec()));
        if !user_data.is_empty() {
            files.push((dir.join("user_data"), user_data.clone()));
        }
    }
    let keys: Vec<_> = server.public_key.iter().collect();
    // JSON is YAML.
    let no_cloud = json!({"instance-id": id, "local-hostname": server.hostname, "public-keys": keys});
    files.push((PathBuf::from("meta-data"), no_cloud.to_string().into_bytes()));
    files.push((PathBuf::from("user-data"), user_data));
    Ok(files)
}

fn meta_data(id: Uuid, server: &Server, project_name: &str, site: &str, random_seed: &[u8]) -> Value {
    let mut meta = json!({
        "uuid": id,
        "name": server.name,
        "hostname": server.hostname,
        "availability_zone": site,
        "project_id": server.project.simple().to_string(),
        "project_name": project_name,
        "launch_index": server.launch_index,
        "meta": server.metadata,
        "random_seed": STANDARD.encode(random_seed),
        "devices": [],
        "dedicated_cpus": [],
    });
    if let (Value::Object(meta), Some(key)) = (&mut meta, &server.public_key) {
        let name = server.key_name.clone().unwrap_or_else(|| "key".to_owned());
        meta.insert("keys".to_owned(), json!([{"name": name, "type": "ssh", "data": key}]));
        meta.insert("public_keys".to_owned(), json!({name: key}));
    }
    if let Value::Object(meta) = &mut meta
        && !server.admin_pass.is_empty()
    {
        meta.insert("admin_pass".to_owned(), json!(server.admin_pass));
    }
    meta
}

/// Makes a config-drive at `path`, beside it first: what is at `path` is whole. It may hold a password, so only its
/// owner can read it.
///
/// # Errors
/// [`ConfigDriveError`].
pub async fn make(path: &Path, files: Vec<(PathBuf, Vec<u8>)>) -> Result<(), ConfigDriveError> {
    let (staging, new) = (path.with_extension("files"), path.with_extension("new"));
    write_all(&staging, &new, files)?;
    let mut arguments: Vec<OsString> =
        ["-as", "mkisofs", "-quiet", "-V", "config-2", "-J", "-r", "-o"].map(Into::into).into();
    arguments.extend([new.clone().into(), staging.clone().into()]);
    let made = tool::run("xorriso", &arguments, Limits::STANDARD).await;
    fs::remove_dir_all(&staging)?;
    made?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(&new, path)?;
    Ok(())
}

fn write_all(staging: &Path, new: &Path, files: Vec<(PathBuf, Vec<u8>)>) -> io::Result<()> {
    if staging.exists() {
        fs::remove_dir_all(staging)?;
    }
    if new.exists() {
        fs::remove_file(new)?;
    }
    fs::DirBuilder::new().mode(0o700).create(staging)?;
    for (name, content) in files {
        let file = staging.join(name);
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(file, content)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_drive_has_the_label_and_the_files_of_both_layouts() {
        let user_data = STANDARD.encode("#!/bin/sh\necho hello\n");
        let server = Server {
            name: "wëb \"1\"".into(),
            hostname: "web-1".into(),
            user_data,
            public_key: Some("ssh-ed25519 AAAA".into()),
            key_name: Some("mine".into()),
            admin_pass: "s3cret".into(),
            ..Server::default()
        };
        let id = Uuid::from_u128(5);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.iso");
        // What a crash left is replaced.
        fs::create_dir(dir.path().join("config.files")).unwrap();
        fs::write(dir.path().join("config.new"), b"half").unwrap();
        make(&path, files(id, &server, "demo", "paris", &[1; 8]).unwrap()).await.unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");

        let iso = fs::read(&path).unwrap();
        let label = &iso[0x8000 + 40..0x8000 + 72];
        assert_eq!(String::from_utf8_lossy(label).trim_end(), "config-2");
        let out = dir.path().join("out");
        let arguments: Vec<OsString> = vec![
            "-osirrox".into(),
            "on".into(),
            "-indev".into(),
            path.into(),
            "-extract".into(),
            "/".into(),
            out.clone().into(),
        ];
        tool::run("xorriso", &arguments, Limits::STANDARD).await.unwrap();
        let meta: Value =
            serde_json::from_slice(&fs::read(out.join("openstack/latest/meta_data.json")).unwrap()).unwrap();
        assert_eq!(meta["uuid"], json!(id));
        assert_eq!(meta["name"], "wëb \"1\"");
        assert_eq!(meta["public_keys"]["mine"], "ssh-ed25519 AAAA");
        assert_eq!(meta["admin_pass"], "s3cret");
        assert_eq!(fs::read(out.join("openstack/2018-08-27/user_data")).unwrap(), b"#!/bin/sh\necho hello\n");
        assert_eq!(fs::read(out.join("user-data")).unwrap(), b"#!/bin/sh\necho hello\n");
        let no_cloud: Value = serde_json::from_slice(&fs::read(out.join("meta-data")).unwrap()).unwrap();
        assert_eq!(no_cloud["local-hostname"], "web-1");
    }

    #[test]
    fn user_data_that_is_not_base64_is_an_error() {
        let server = Server { user_data: "%%%".into(), ..Server::default() };
        let made = files(Uuid::nil(), &server, "", "", &[]);
        assert!(matches!(made, Err(ConfigDriveError::UserData)));
    }
}
