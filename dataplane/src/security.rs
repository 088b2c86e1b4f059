//! Security contexts of SAs and policies.
//!
//! A kernel without a module that cares takes any context and forgets it. The
//! reference kernels run SELinux without a policy, which accepts every context
//! of its own kind and tells it again.
//!
//! Source: `security/selinux/xfrm.c selinux_xfrm_alloc_user`.

use xfrm_proto::consts::errno;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::uapi::{Pod, UserSecCtx};

use crate::profile::Profile;

/// `XFRM_SC_DOI_LSM`, `XFRM_SC_ALG_SELINUX`.
const SELINUX: u8 = 1;
/// `PAGE_SIZE`.
const TOO_LONG: usize = 4096;

/// A context that is kept: a string and its terminating NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecurityContext(Box<[u8]>);

impl SecurityContext {
    /// Takes a SEC_CTX attribute whose lengths have been checked; `None` when nobody keeps it.
    ///
    /// # Errors
    /// EINVAL, ENOMEM.
    pub fn admit(profile: &Profile, attr: &[u8]) -> Result<Option<Self>, XfrmError> {
        if !profile.has_selinux {
            return Ok(None);
        }
        let head = UserSecCtx::read(attr).unwrap_or_default();
        let len = usize::from(head.ctx_len);
        let text = attr
            .get(UserSecCtx::SIZE..UserSecCtx::SIZE + len)
            .unwrap_or_default();
        if head.ctx_doi != SELINUX || head.ctx_alg != SELINUX {
            return Err(XfrmError::new(errno::EINVAL));
        }
        if text.len() >= TOO_LONG {
            return Err(XfrmError::new(errno::ENOMEM));
        }
        if text.is_empty() {
            return Err(XfrmError::new(errno::EINVAL));
        }
        Ok(Some(Self::of(text)))
    }

    /// The context of a clone.
    ///
    /// QUIRK: a_cloned_context_grows. The NUL counts as part of the string, and gets another.
    #[must_use]
    pub fn of_clone(&self) -> Self {
        Self::of(&self.0)
    }

    /// The attribute as it is told.
    #[must_use]
    pub fn head(&self) -> UserSecCtx {
        let ctx_len = u16::try_from(self.0.len()).unwrap_or(u16::MAX);
        UserSecCtx {
            len: ctx_len + 8,
            exttype: xfrm_proto::consts::XFRMA_SEC_CTX,
            ctx_alg: SELINUX,
            ctx_doi: SELINUX,
            ctx_len,
        }
    }

    /// The string with its NUL.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// One whose string and NUL were kept.
    pub(crate) fn recall(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    fn of(text: &[u8]) -> Self {
        Self(text.iter().copied().chain([0]).collect())
    }
}
