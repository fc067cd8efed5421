/* A protocol driver in one file: attaches to an adapter with an external transport, sends one ESP packet
 * through an SA the NIC holds and prints how the send ended, or prints one frame that comes.
 *
 * Two NICs, joined by a link; IPsec switched on by OID_OFFLOAD_ENCAPSULATION for Ethernet; one SA in both:
 *
 *     cc -O2 -Wall -o driver driver.c
 *     vnic adapter add nic0 transport external
 *     vnic adapter add nic1 transport external wire link nic0
 *     ON=hex:a8011c0001000000020000000e00000001000000020000000e000000
 *     vnic oid set nic0 offload_encapsulation $ON
 *     vnic oid set nic1 offload_encapsulation $ON
 *     (umask 077; openssl rand -hex 20 > key)
 *     vnic sa add dev nic0 out src 192.0.2.1 dst 192.0.2.2 esp spi 0x1000 aes-gcm-128 key file:key
 *     vnic sa add dev nic1 in src 192.0.2.1 dst 192.0.2.2 esp spi 0x1000 aes-gcm-128 key file:key
 *     HANDLE=$(vnic -j sa show dev nic0 | jq '.[0].handle')
 *     ./driver /run/vnic/nic1.nbl 0 0 receive &
 *     sleep 0.2
 *     ./driver /run/vnic/nic0.nbl $HANDLE 0x1000 send
 *     wait
 *
 * The packet is framed here, as a driver does: IPv4 192.0.2.1 -> 192.0.2.2, ESP header, room for the IV, UDP
 * with a line of text, padding, trailer, room for the ICV. The NIC makes IV, cipher text and ICV.
 */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "vnic_nbl.h"

#define ETHERNET_LENGTH 14
#define IPV4_LENGTH 20
#define UDP_LENGTH 8
#define ESP_LENGTH 8
#define IV_LENGTH 8   /* AES-GCM */
#define ICV_LENGTH 16 /* AES-GCM */
#define PROTOCOL_ESP 50
#define PROTOCOL_UDP 17
#define NDIS_STATUS_SUCCESS 0u
#define NDIS_STATUS_NOT_ACCEPTED 0x00010003u

static const char TEXT[] = "sealed by the NIC";

static _Alignas(8) uint8_t message[VNIC_NBL_MESSAGE_LIMIT];

static void put16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void put32(uint8_t *at, uint32_t value)
{
    put16(at, value >> 16);
    put16(at + 2, value & 0xFFFF);
}

static unsigned internet_checksum(const uint8_t *data, size_t length)
{
    uint32_t sum = 0;
    for (size_t i = 0; i + 1 < length; i += 2)
        sum += (uint32_t)data[i] << 8 | data[i + 1];
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return ~sum & 0xFFFF;
}

/* Write an Ethernet frame with one ESP packet in transport mode; give its length and that of its padding. */
static size_t frame_esp(uint8_t *frame, uint32_t spi, unsigned *pad_length)
{
    const size_t payload_length = UDP_LENGTH + sizeof TEXT;
    uint8_t *ip = frame + ETHERNET_LENGTH;
    uint8_t *esp = ip + IPV4_LENGTH;
    uint8_t *udp = esp + ESP_LENGTH + IV_LENGTH;
    uint8_t *trailer = udp + payload_length;

    *pad_length = (unsigned)(-(payload_length + 2) & 3);
    memcpy(frame, "\x02\0\0\0\0\x02\x02\0\0\0\0\x01\x08\0", ETHERNET_LENGTH);
    put32(esp, spi);
    put32(esp + 4, 1); /* first sequence number of the SA */
    memset(esp + ESP_LENGTH, 0, IV_LENGTH);
    put16(udp, 5000);
    put16(udp + 2, 5000);
    put16(udp + 4, (unsigned)payload_length);
    put16(udp + 6, 0);
    memcpy(udp + UDP_LENGTH, TEXT, sizeof TEXT);
    for (unsigned i = 0; i < *pad_length; i++)
        trailer[i] = (uint8_t)(i + 1);
    trailer += *pad_length;
    *trailer++ = (uint8_t)*pad_length;
    *trailer++ = PROTOCOL_UDP;
    memset(trailer, 0, ICV_LENGTH);
    trailer += ICV_LENGTH;

    memset(ip, 0, IPV4_LENGTH);
    ip[0] = 0x45;
    put16(ip + 2, (unsigned)(trailer - ip));
    ip[8] = 64;
    ip[9] = PROTOCOL_ESP;
    memcpy(ip + 12, "\xc0\0\x02\x01\xc0\0\x02\x02", 8);
    put16(ip + 10, internet_checksum(ip, IPV4_LENGTH));
    return (size_t)(trailer - frame);
}

static int attach(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int nic = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (nic < 0 || strlen(path) >= sizeof address.sun_path) {
        fprintf(stderr, "no socket for %s\n", path);
        exit(1);
    }
    strcpy(address.sun_path, path);
    if (connect(nic, (struct sockaddr *)&address, sizeof address) < 0) {
        fprintf(stderr, "cannot attach to %s: %s\n", path, strerror(errno));
        exit(1);
    }
    return nic;
}

/* Take messages until one of that type comes; print status indications that come before. */
static const struct vnic_nbl_header *await_message(int nic, enum vnic_nbl_type type)
{
    for (;;) {
        const struct vnic_nbl_header *header = (const void *)message;
        const struct vnic_nbl_descriptor *data = (const void *)(message + sizeof *header);
        ssize_t length = recv(nic, message, sizeof message, 0);
        if (length < (ssize_t)sizeof *header || header->Version != VNIC_NBL_VERSION) {
            fprintf(stderr, "the NIC is gone\n");
            exit(1);
        }
        if (header->Type == VNIC_NBL_STATUS_INDICATION) {
            if (header->Status == NDIS_STATUS_NOT_ACCEPTED) {
                fprintf(stderr, "refused: %.*s\n", (int)data->DataLength, message + data->DataOffset);
                exit(1);
            }
            printf("status indication 0x%08" PRIx32 ", buffer of %" PRIu32 " bytes\n", header->Status,
                   header->NetBufferCount ? data->DataLength : 0);
        }
        if (header->Type == type)
            return header;
    }
}

static int send_one(int nic, uint64_t handle, uint32_t spi)
{
    struct vnic_nbl_header *header = (void *)message;
    struct vnic_nbl_descriptor *data = (void *)(message + sizeof *header);
    unsigned pad_length;

    memset(message, 0, sizeof *header);
    header->Version = VNIC_NBL_VERSION;
    header->Type = VNIC_NBL_SEND;
    header->RequestId = 1;
    header->NetBufferCount = 1;
    header->HeaderLength = sizeof *header;
    data->DataOffset = sizeof *header + sizeof *data;
    data->DataLength = (uint32_t)frame_esp(message + data->DataOffset, spi, &pad_length);
    header->IPsecOffload = handle;
    header->IPsecOffloadHeader = VNIC_HEADER_TRANSMIT(PROTOCOL_UDP, pad_length, 0, IPV4_LENGTH);
    if (send(nic, message, data->DataOffset + data->DataLength, 0) < 0) {
        perror("send");
        return 1;
    }
    uint32_t status = await_message(nic, VNIC_NBL_SEND_COMPLETE)->Status;
    printf("send 1 completed with status 0x%08" PRIx32 "\n", status);
    return status != NDIS_STATUS_SUCCESS;
}

static int receive_one(int nic)
{
    const struct vnic_nbl_header *header = await_message(nic, VNIC_NBL_RECEIVE);
    const struct vnic_nbl_descriptor *data = (const void *)(message + sizeof *header);

    printf("received %" PRIu32 " bytes, CryptoDone %u, NextCryptoDone %u, CryptoStatus %u", data->DataLength,
           header->IPsecOffload & VNIC_CRYPTO_DONE ? 1 : 0, header->IPsecOffload & VNIC_NEXT_CRYPTO_DONE ? 1 : 0,
           VNIC_CRYPTO_STATUS(header->IPsecOffload));
    if (header->IPsecOffloadHeader & VNIC_HEADER_INFO_SET)
        printf(", NextHeader %u, PadLength %u", VNIC_NEXT_HEADER(header->IPsecOffloadHeader),
               VNIC_PAD_LENGTH(header->IPsecOffloadHeader));
    size_t text = ETHERNET_LENGTH + IPV4_LENGTH + ESP_LENGTH + IV_LENGTH + UDP_LENGTH;
    if (header->IPsecOffload & VNIC_CRYPTO_DONE && data->DataLength > text + sizeof TEXT)
        printf(", text '%.*s'", (int)sizeof TEXT - 1, message + data->DataOffset + text);
    printf("\n");
    return 0;
}

int main(int count, char **words)
{
    if (count != 5 || (strcmp(words[4], "send") != 0 && strcmp(words[4], "receive") != 0)) {
        fprintf(stderr, "usage: %s NBL-SOCKET HANDLE SPI send|receive\n", words[0]);
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    int nic = attach(words[1]);
    /* The greeting: what the hardware can do, then what it does now. */
    await_message(nic, VNIC_NBL_STATUS_INDICATION);
    await_message(nic, VNIC_NBL_STATUS_INDICATION);
    printf("attached\n");
    int failed = strcmp(words[4], "send") == 0
                     ? send_one(nic, strtoull(words[2], NULL, 0), (uint32_t)strtoul(words[3], NULL, 0))
                     : receive_one(nic);
    close(nic);
    return failed;
}
