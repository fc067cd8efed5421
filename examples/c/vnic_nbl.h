/* Messages of the NBL socket of vnic: one NET_BUFFER_LIST or status indication in one datagram of a
 * SOCK_SEQPACKET socket. The same layout as vnic/ndis/nbl.py, whose text says more.
 *
 * Every integer is little-endian, as on the machines this is for. A message is a header, NetBufferCount
 * descriptors, and the data they name. */
#ifndef VNIC_NBL_H
#define VNIC_NBL_H

#include <stdint.h>

#define VNIC_NBL_VERSION 1
#define VNIC_NBL_MESSAGE_LIMIT (1u << 20)
#define VNIC_NBL_NET_BUFFER_LIMIT 1024

enum vnic_nbl_type {
    VNIC_NBL_SEND = 1,              /* driver to NIC */
    VNIC_NBL_SEND_COMPLETE = 2,     /* NIC to driver */
    VNIC_NBL_RECEIVE = 3,           /* NIC to driver */
    VNIC_NBL_STATUS_INDICATION = 4, /* NIC to driver */
};

struct vnic_nbl_header {
    uint16_t Version;
    uint8_t Type;
    uint8_t Flags;              /* 0 */
    uint32_t Status;            /* send complete: NDIS_STATUS; status indication: its code; else 0 */
    uint64_t RequestId;         /* send: the driver's, quoted when it completes */
    uint32_t NetBufferCount;
    uint32_t HeaderLength;      /* sizeof(struct vnic_nbl_header) */
    uint64_t TcpIpChecksum;     /* slot 0 of the info array */
    uint64_t IPsecOffload;      /* slot 1 */
    uint64_t TcpLargeSend;      /* slot 2 */
    uint64_t IPsecOffloadTunnel; /* slot 11 */
    uint64_t IPsecOffloadHeader; /* slot 12 */
    uint64_t NextOffloadHandle; /* NDIS 5 form of slot 11; else 0 */
};

struct vnic_nbl_descriptor {
    uint32_t DataOffset; /* bytes from the start of the message */
    uint32_t DataLength; /* bytes; never 0 */
};

/* Slot 1 of a received frame. */
#define VNIC_SA_DELETE_REQ 0x1u
#define VNIC_CRYPTO_DONE 0x2u
#define VNIC_NEXT_CRYPTO_DONE 0x4u
#define VNIC_CRYPTO_STATUS(slot) ((unsigned)((slot) >> 16) & 0xFFFFu)

/* Slot 12 of a send: offsets are bytes from the start of the outermost IP header, 0 for a header that is not
 * there. */
#define VNIC_HEADER_TRANSMIT(next_header, pad_length, ah_offset, esp_offset)                       \
    ((uint64_t)(next_header) | (uint64_t)(pad_length) << 8 | (uint64_t)((ah_offset) / 4) << 16     \
     | (uint64_t)((esp_offset) / 4) << 24)

/* Slot 12 of a received frame. */
#define VNIC_HEADER_INFO_SET 0x10000u
#define VNIC_NEXT_HEADER(slot) ((unsigned)(slot) & 0xFFu)
#define VNIC_PAD_LENGTH(slot) ((unsigned)((slot) >> 8) & 0xFFu)

#endif
