/*
 * intel-ipsec-mb behind flat functions, so that no layout of the library is known outside this file.
 *
 * Law: pointers and lengths are what the caller says; nothing is kept between calls but in the memory that
 * vnic_mb_init was given. Copies of keys are made in that memory alone, and are cleared before the call ends.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <intel-ipsec-mb.h>

#if IMB_VERSION_NUM < IMB_VERSION(1, 3, 0)
#error "intel-ipsec-mb 1.3 or newer is needed"
#endif

enum { CIPHER_NONE, CIPHER_DES, CIPHER_3DES, CIPHER_AES_128, CIPHER_AES_192, CIPHER_AES_256 };
enum { HASH_NONE, HASH_MD5, HASH_SHA1, HASH_SHA256 };

/* As RawJob in mb.rs. */
struct vnic_job {
        const uint8_t *source;
        uint8_t *target;
        const uint8_t *iv;
        const void *cipher_key;
        const uint8_t *inner;
        const uint8_t *outer;
        uint8_t *tag;
        uint32_t cipher_start;
        uint32_t cipher_length;
        uint32_t hash_length;
        uint8_t cipher;
        uint8_t hash;
        uint8_t open;
        uint8_t done;
};

struct vnic_work {
        DECLARE_ALIGNED(struct gcm_context_data context, 64);
        DECLARE_ALIGNED(uint8_t other_keys[16 * 15], 64);
        uint8_t block[64];
        uint8_t nonce[12];
        uint8_t aad[12];
};

struct vnic_state {
        struct vnic_work work;
        int has_manager_of_few;
};

/*
 * State, manager, and a second manager for bursts of few jobs: wide vectors cost the same whether all their lanes
 * are used or one, and the 128-bit path has the SHA instructions.
 */
#define ALIGNED(size) (((size) + 63) & ~(size_t)63)
#define STATE_SIZE ALIGNED(sizeof(struct vnic_state))
#define MANAGER_SIZE ALIGNED(imb_get_mb_mgr_size())
#define MANAGER(memory) ((IMB_MGR *)((uint8_t *)(memory) + STATE_SIZE))
#define MANAGER_OF_FEW(memory) ((IMB_MGR *)((uint8_t *)(memory) + STATE_SIZE + MANAGER_SIZE))
#define STATE(memory) ((struct vnic_state *)(memory))
#define WORK(memory) (&STATE(memory)->work)
#define FEW 4

size_t vnic_mb_size(void)
{
        return STATE_SIZE + 2 * MANAGER_SIZE;
}

const char *vnic_mb_version(void)
{
        return imb_get_version_str();
}

/* 0, or 1: the CPU lacks AES, carry-less multiplication or SSE 4.2; 2: the library failed its self-test.
 * `limit`: 0 the best for this CPU, else an IMB_ARCH of which the CPU must be capable. */
int vnic_mb_init(void *memory, unsigned limit)
{
        IMB_MGR *manager = MANAGER(memory);
        const uint64_t features = imb_get_feature_flags();
        const uint64_t needed = limit == IMB_ARCH_AVX512 ? IMB_CPUFLAGS_AVX512
                              : limit == IMB_ARCH_AVX2   ? IMB_CPUFLAGS_AVX2
                                                         : IMB_CPUFLAGS_SSE;

        if (imb_set_pointers_mb_mgr(manager, 0, 1) == NULL)
                return 1;
        if ((manager->features & needed) != needed || (features & IMB_FEATURE_SAFE_PARAM) == 0)
                return 1;
        switch (limit) {
        case 0:
                init_mb_mgr_auto(manager, NULL);
                break;
        case IMB_ARCH_SSE:
                init_mb_mgr_sse(manager);
                break;
        case IMB_ARCH_AVX2:
                init_mb_mgr_avx2(manager);
                break;
        case IMB_ARCH_AVX512:
                init_mb_mgr_avx512(manager);
                break;
        default:
                return 1;
        }
        if (imb_get_errno(manager) != 0)
                return 2;
        if (limit == 0 && manager->used_arch != IMB_ARCH_SSE && (features & IMB_FEATURE_SHANI) != 0) {
                manager = MANAGER_OF_FEW(memory);
                if (imb_set_pointers_mb_mgr(manager, 0, 1) == NULL)
                        return 1;
                init_mb_mgr_sse(manager);
                if (imb_get_errno(manager) != 0)
                        return 2;
                STATE(memory)->has_manager_of_few = 1;
        }
        return 0;
}

unsigned vnic_mb_arch(void *memory)
{
        return MANAGER(memory)->used_arch;
}

void vnic_mb_wipe(void *memory)
{
        imb_clear_mem(WORK(memory), sizeof(struct vnic_work));
}

size_t vnic_gcm_key_size(void)
{
        return sizeof(struct gcm_key_data);
}

void vnic_gcm_expand(void *memory, unsigned bits, const uint8_t *key, void *expanded)
{
        IMB_MGR *manager = MANAGER(memory);

        switch (bits) {
        case 128:
                IMB_AES128_GCM_PRE(manager, key, expanded);
                break;
        case 192:
                IMB_AES192_GCM_PRE(manager, key, expanded);
                break;
        default:
                IMB_AES256_GCM_PRE(manager, key, expanded);
                break;
        }
}

/* `expanded` takes 16 * 15 bytes. */
void vnic_aes_expand(void *memory, unsigned bits, int open, const uint8_t *key, void *expanded)
{
        IMB_MGR *manager = MANAGER(memory);
        struct vnic_work *work = WORK(memory);
        void *encryption = open ? (void *)work->other_keys : expanded;
        void *decryption = open ? expanded : (void *)work->other_keys;

        switch (bits) {
        case 128:
                IMB_AES_KEYEXP_128(manager, key, encryption, decryption);
                break;
        case 192:
                IMB_AES_KEYEXP_192(manager, key, encryption, decryption);
                break;
        default:
                IMB_AES_KEYEXP_256(manager, key, encryption, decryption);
                break;
        }
        vnic_mb_wipe(memory);
}

size_t vnic_des_key_size(unsigned keys)
{
        return 3 * sizeof(void *) + keys * IMB_DES_KEY_SCHED_SIZE;
}

/* Three pointers to schedules, then `keys` (1 or 3) schedules. */
void vnic_des_expand(void *memory, unsigned keys, const uint8_t *key, void *expanded)
{
        const void **schedules = expanded;
        uint8_t *schedule = (uint8_t *)(schedules + 3);

        for (unsigned i = 0; i < 3; i++) {
                schedules[i] = schedule + (keys == 3 ? i : 0) * IMB_DES_KEY_SCHED_SIZE;
                if (i < keys)
                        IMB_DES_KEYSCHED(MANAGER(memory), (uint64_t *)schedules[i], key + 8 * i);
        }
}

/* The state of the hash behind the key xor ipad, and behind the key xor opad; a key is at most 64 bytes. */
void vnic_hmac_expand(void *memory, unsigned hash, const uint8_t *key, size_t length, void *inner, void *outer)
{
        IMB_MGR *manager = MANAGER(memory);
        struct vnic_work *work = WORK(memory);

        for (unsigned side = 0; side < 2; side++) {
                const uint8_t pad = side == 0 ? 0x36 : 0x5c;
                void *state = side == 0 ? inner : outer;

                memset(work->block, pad, sizeof(work->block));
                for (size_t i = 0; i < length; i++)
                        work->block[i] ^= key[i];
                switch (hash) {
                case HASH_MD5:
                        IMB_MD5_ONE_BLOCK(manager, work->block, state);
                        break;
                case HASH_SHA1:
                        IMB_SHA1_ONE_BLOCK(manager, work->block, state);
                        break;
                default:
                        IMB_SHA256_ONE_BLOCK(manager, work->block, state);
                        break;
                }
        }
        vnic_mb_wipe(memory);
}

/* `header` is SPI and sequence number; `high`, or NULL, comes between them in the AAD (RFC 4106 §5). */
void vnic_gcm(void *memory, unsigned bits, int open, const void *key, const uint8_t *salt, const uint8_t *iv,
              const uint8_t *header, const uint8_t *high, const uint8_t *source, uint8_t *target, uint64_t length,
              uint8_t *tag, uint64_t tag_length)
{
        IMB_MGR *manager = MANAGER(memory);
        struct vnic_work *work = WORK(memory);
        const uint8_t *aad = header;
        uint64_t aad_length = 8;
        aes_gcm_enc_dec_t function;

        memcpy(work->nonce, salt, 4);
        memcpy(work->nonce + 4, iv, 8);
        if (high != NULL) {
                memcpy(work->aad, header, 4);
                memcpy(work->aad + 4, high, 4);
                memcpy(work->aad + 8, header + 4, 4);
                aad = work->aad;
                aad_length = 12;
        }
        if (bits == 128)
                function = open ? manager->gcm128_dec : manager->gcm128_enc;
        else if (bits == 192)
                function = open ? manager->gcm192_dec : manager->gcm192_enc;
        else
                function = open ? manager->gcm256_dec : manager->gcm256_enc;
        function(key, &work->context, target, source, length, work->nonce, aad, aad_length, tag, tag_length);
}

/* The 16 bytes over three pieces, one after the other; a piece may be empty. */
void vnic_gmac(void *memory, unsigned bits, const void *key, const uint8_t *salt, const uint8_t *iv,
               const uint8_t *const pieces[3], const uint64_t lengths[3], uint8_t *tag)
{
        IMB_MGR *manager = MANAGER(memory);
        struct vnic_work *work = WORK(memory);
        aes_gmac_init_t init = manager->gmac256_init;
        aes_gmac_update_t update = manager->gmac256_update;
        aes_gmac_finalize_t finalize = manager->gmac256_finalize;

        if (bits == 128) {
                init = manager->gmac128_init;
                update = manager->gmac128_update;
                finalize = manager->gmac128_finalize;
        } else if (bits == 192) {
                init = manager->gmac192_init;
                update = manager->gmac192_update;
                finalize = manager->gmac192_finalize;
        }
        memcpy(work->nonce, salt, 4);
        memcpy(work->nonce + 4, iv, 8);
        init(key, &work->context, work->nonce, sizeof(work->nonce));
        for (unsigned i = 0; i < 3; i++)
                if (lengths[i] != 0)
                        update(key, &work->context, pieces[i], lengths[i]);
        finalize(key, &work->context, tag, 16);
}

static void describe(IMB_JOB *to, struct vnic_job *from)
{
        static const IMB_CIPHER_MODE ciphers[] = { IMB_CIPHER_NULL, IMB_CIPHER_DES, IMB_CIPHER_DES3,
                                                   IMB_CIPHER_CBC,  IMB_CIPHER_CBC, IMB_CIPHER_CBC };
        static const uint8_t key_lengths[] = { 0, 8, 24, 16, 24, 32 };
        static const IMB_HASH_ALG hashes[] = { IMB_AUTH_NULL, IMB_AUTH_MD5, IMB_AUTH_HMAC_SHA_1,
                                               IMB_AUTH_HMAC_SHA_256 };
        static const uint8_t tag_lengths[] = { 0, 12, 12, 16 };
        const void *key = from->cipher_key;

        /* DES takes the schedule, triple DES the three pointers to schedules. */
        if (from->cipher == CIPHER_DES)
                key = *(const void *const *)key;
        to->enc_keys = key;
        to->dec_keys = key;
        to->key_len_in_bytes = key_lengths[from->cipher];
        to->src = from->source;
        to->dst = from->target;
        to->cipher_start_src_offset_in_bytes = from->cipher_start;
        to->msg_len_to_cipher_in_bytes = from->cipher_length;
        to->hash_start_src_offset_in_bytes = 0;
        to->msg_len_to_hash_in_bytes = from->hash_length;
        to->iv = from->iv;
        to->iv_len_in_bytes = from->cipher == CIPHER_NONE ? 0 : from->cipher < CIPHER_AES_128 ? 8 : 16;
        to->auth_tag_output = from->tag;
        to->auth_tag_output_len_in_bytes = tag_lengths[from->hash];
        to->u.HMAC._hashed_auth_key_xor_ipad = from->inner;
        to->u.HMAC._hashed_auth_key_xor_opad = from->outer;
        to->cipher_mode = ciphers[from->cipher];
        to->cipher_direction = from->open ? IMB_DIR_DECRYPT : IMB_DIR_ENCRYPT;
        to->hash_alg = hashes[from->hash];
        to->chain_order = from->open ? IMB_ORDER_HASH_CIPHER : IMB_ORDER_CIPHER_HASH;
        to->user_data = from;
}

static void finish(const IMB_JOB *job)
{
        ((struct vnic_job *)job->user_data)->done = job->status == IMB_STATUS_COMPLETED;
}

/* All jobs, many at a time; `done` of a job that the library would not do stays 0. DES has only one fast path. */
void vnic_mb_run(void *memory, struct vnic_job *jobs, size_t count)
{
        IMB_MGR *const many = MANAGER(memory);
        IMB_MGR *const few = count <= FEW && STATE(memory)->has_manager_of_few ? MANAGER_OF_FEW(memory) : many;
        IMB_JOB *job;

        for (size_t i = 0; i < count; i++) {
                const int des = jobs[i].cipher == CIPHER_DES || jobs[i].cipher == CIPHER_3DES;
                IMB_MGR *const manager = des ? many : few;

                describe(IMB_GET_NEXT_JOB(manager), &jobs[i]);
                for (job = IMB_SUBMIT_JOB(manager); job != NULL; job = IMB_GET_COMPLETED_JOB(manager))
                        finish(job);
        }
        while ((job = IMB_FLUSH_JOB(few)) != NULL)
                finish(job);
        while ((job = IMB_FLUSH_JOB(many)) != NULL)
                finish(job);
}
