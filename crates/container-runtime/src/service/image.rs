//! CRI's image service.

use std::sync::Arc;

use async_trait::async_trait;
use cri::Status;
use cri::image_service_server::ImageService;
use cri::v1::{
    Image, ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse,
    Int64Value, ListImagesRequest, ListImagesResponse, PullImageRequest, PullImageResponse,
    RemoveImageRequest, RemoveImageResponse,
};
use tonic::{Request, Response};

use crate::error::RuntimeError;
use crate::image::{Credentials, ImageError, ImageRecord};
use crate::runtime::Runtime;
use crate::stats::usage_of;

#[derive(Debug)]
pub(super) struct Service {
    runtime: Arc<Runtime>,
}

impl Service {
    pub(super) fn new(runtime: Arc<Runtime>) -> Self {
        Self { runtime }
    }
}

fn describe(record: &ImageRecord) -> Image {
    let user = record.user.split(':').next().unwrap_or_default();
    let uid = user.parse().ok().map(|value| Int64Value { value });
    let username = if uid.is_some() { String::new() } else { user.to_owned() };
    Image {
        id: record.id.clone(),
        repo_tags: record.tags.clone(),
        repo_digests: record.digests.clone(),
        size: record.size,
        uid,
        username,
        spec: Some(ImageSpec { image: record.id.clone(), ..ImageSpec::default() }),
        pinned: false,
    }
}

fn name_of(image: Option<ImageSpec>) -> Result<String, Status> {
    let name = image.map(|image| image.image).unwrap_or_default();
    if name.is_empty() {
        return Err(Status::invalid_argument("image name is missing"));
    }
    Ok(name)
}

/// The image, or nothing where there is none.
fn lookup(runtime: &Runtime, name: &str) -> Result<Option<ImageRecord>, Status> {
    match runtime.images.find(name) {
        Ok(record) => Ok(Some(record)),
        Err(ImageError::NotFound { .. }) => Ok(None),
        Err(error) => Err(RuntimeError::from(error).into()),
    }
}

#[async_trait]
impl ImageService for Service {
    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let filter = request.into_inner().filter.and_then(|filter| filter.image).map(|image| image.image);
        let records = match filter.filter(|name| !name.is_empty()) {
            Some(name) => lookup(&self.runtime, &name)?.into_iter().collect(),
            None => self.runtime.images.list().map_err(RuntimeError::from)?,
        };
        Ok(Response::new(ListImagesResponse { images: records.iter().map(describe).collect() }))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let name = name_of(request.into_inner().image)?;
        let image = lookup(&self.runtime, &name)?.as_ref().map(describe);
        Ok(Response::new(ImageStatusResponse { image, ..ImageStatusResponse::default() }))
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        let request = request.into_inner();
        let name = name_of(request.image)?;
        let credentials = request.auth.map(Credentials::from_cri).transpose().map_err(RuntimeError::from)?;
        let record = self.runtime.puller.pull(&name, credentials).await.map_err(RuntimeError::from)?;
        Ok(Response::new(PullImageResponse { image_ref: record.id }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let name = name_of(request.into_inner().image)?;
        let runtime = Arc::clone(&self.runtime);
        let work = move || -> Result<(), RuntimeError> {
            // CRI removes the image under all of its names.
            match runtime.images.find(&name) {
                Ok(record) => drop(runtime.images.remove(&record.id)?),
                Err(ImageError::NotFound { .. }) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            Ok(runtime.images.collect_garbage(&runtime.layers_in_use())?)
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))??;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        let runtime = Arc::clone(&self.runtime);
        let work = move || {
            let mut images = usage_of(&runtime.layout.root.join("images"));
            let layers = usage_of(&runtime.images.layers_dir());
            for (total, more) in
                [(&mut images.used_bytes, layers.used_bytes), (&mut images.inodes_used, layers.inodes_used)]
            {
                if let (Some(total), Some(more)) = (total, more) {
                    total.value += more.value;
                }
            }
            let containers = usage_of(&runtime.layout.root.join("containers"));
            ImageFsInfoResponse { image_filesystems: vec![images], container_filesystems: vec![containers] }
        };
        let info = tokio::task::spawn_blocking(work).await;
        info.map(Response::new).map_err(|error| Status::internal(error.to_string()))
    }
}
